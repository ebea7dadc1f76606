"""Base models: what an adapter is trained on.

`loading.py` one by name or folder, and the chapter-12 model; `base.py` what fine-tuning needs of it; `saving.py` a merged
one; `smollm2.py` a real language model; `transformers_models.py` and `transformers_tokenizers.py` whatever
transformers reads. GPT-2's weights are read by `llm/gpt2_weights.py`, which `GPT.from_pretrained` needs too.
"""

from llm.bases.base import Base, generate, new_text
from llm.bases.loading import NAMES, load, load_base
from llm.bases.saving import save
from llm.bases.smollm2 import fetch_smollm2
from llm.errors import BaseError

__all__ = ["NAMES", "Base", "BaseError", "fetch_smollm2", "generate", "load", "load_base", "new_text", "save"]
