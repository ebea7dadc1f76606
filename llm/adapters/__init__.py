"""Adapters: what a model's LoRA, DoRA or IA3 layers have learned, apart from the model.

`on_model.py` save, load, swap, inspect; `folder.py` the two files of PEFT's format, checked before they are believed;
`peft_config.py` PEFT's settings; `foreign.py` the names that others write; `fingerprints.py` how an adapter knows its base.
"""

from llm.adapters.fingerprints import fingerprint
from llm.adapters.folder import AdapterInfo
from llm.adapters.on_model import inspect_adapter, load_adapter, save_adapter
from llm.errors import AdapterError

__all__ = ["AdapterError", "AdapterInfo", "fingerprint", "inspect_adapter", "load_adapter", "save_adapter"]
