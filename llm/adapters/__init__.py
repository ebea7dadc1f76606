"""Adapters: what a model's LoRA, DoRA or IA3 layers have learned, apart from the model.

`on_model.py` saves, loads, swaps and inspects them; `folder.py` handles the two files of PEFT's format;
`peft_config.py` PEFT's settings; `foreign.py` the names that other tools write; `fingerprints.py` tells bases apart.
"""

from llm.adapters.fingerprints import fingerprint
from llm.adapters.folder import AdapterInfo
from llm.adapters.on_model import inspect_adapter, load_adapter, save_adapter
from llm.errors import AdapterError

__all__ = ["AdapterError", "AdapterInfo", "fingerprint", "inspect_adapter", "load_adapter", "save_adapter"]
