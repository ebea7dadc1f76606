"""Adapters: what a model's LoRA, DoRA or IA3 layers have learned, apart from the model.

`on_model.py` save, load, swap, inspect; `folder.py` the two files of PEFT's format, checked before they are believed;
`ia3.py` IA3's; `peft_config.py` PEFT's settings, and which of them are refused; `foreign.py` what others write, and what it is;
`fingerprints.py` how an adapter knows its base.
"""

from llm.adapters.fingerprints import fingerprint
from llm.adapters.on_model import AdapterInfo, inspect_adapter, load_adapter, save_adapter
from llm.errors import AdapterError

__all__ = ["AdapterError", "AdapterInfo", "fingerprint", "inspect_adapter", "load_adapter", "save_adapter"]
