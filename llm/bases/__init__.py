"""Base models: what an adapter is trained on.

`loading.py` one by name or folder; `base.py` what fine-tuning needs of it; `saving.py` a merged one; `course.py` the chapter-12
model and a learner's own checkpoint; `smollm2.py` the real one of notebook 07; `transformers_models.py` and
`transformers_tokenizers.py` whatever transformers reads; `theirs.py` what it raises and prints. GPT-2's weights are
read by `llm/gpt2_weights.py`, which `GPT.from_pretrained` needs too.
"""

from llm.bases.base import Base, generate
from llm.bases.course import load_base
from llm.bases.loading import NAMES, load
from llm.bases.saving import save
from llm.bases.smollm2 import fetch_smollm2
from llm.errors import BaseError

__all__ = ["NAMES", "Base", "BaseError", "fetch_smollm2", "generate", "load", "load_base", "save"]
