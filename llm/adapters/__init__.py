"""Adapters: the factors A and B of a model's LoRA layers, apart from the model.

`on_model.py` save, load, swap, inspect; `folder.py` the two files of PEFT's format, checked before they are believed;
`peft_config.py` PEFT's settings, and which of them are refused; `foreign.py` what others write, and what it is;
`fingerprints.py` how an adapter knows its base.
"""

from llm.adapters.fingerprints import fingerprint
from llm.adapters.on_model import AdapterInfo, inspect_adapter, load_adapter, save_adapter
from llm.errors import AdapterError

__all__ = ["AdapterError", "AdapterInfo", "fingerprint", "inspect_adapter", "load_adapter", "save_adapter"]
