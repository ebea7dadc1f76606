"""Base models: what an adapter is trained on.

`loading.py` loads one by name or folder, and the chapter-12 model; `base.py` is what fine-tuning needs of it;
`saving.py` saves a merged one; `smollm2.py` fetches a real language model; `transformers_models.py` and
`transformers_tokenizers.py` read any model of transformers. `llm/gpt2_weights.py` reads GPT-2, for `GPT` too.
"""

from llm.bases.base import Base, generate, new_text
from llm.bases.loading import NAMES, load, load_base
from llm.bases.saving import save
from llm.bases.smollm2 import fetch_smollm2
from llm.errors import BaseError

__all__ = ["NAMES", "Base", "BaseError", "fetch_smollm2", "generate", "load", "load_base", "new_text", "save"]
