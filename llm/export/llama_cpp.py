"""Runs llama.cpp's own server on a GGUF inside this process, to ask it about a prompt or a conversation."""

import json
import urllib.request
from pathlib import Path

import torch

from llm.bases.transformers_models import INSTALL, theirs
from llm.errors import BaseError


class Server:
    """A llama.cpp server of a model, and perhaps an adapter at `scale`: `with Server("model.gguf") as server:`.

    template: Jinja, or one of llama.cpp's template names, in place of the model's own. address: its URL for programs on
    this machine. Raises BaseError when llama.cpp is not installed or rejects a file.
    """

    def __init__(self, model: Path, adapter: Path | None = None, scale=1.0, template: str = "", context: int = 2048):
        try:
            import xllamacpp
        except ImportError:
            raise BaseError(f"this needs the package xllamacpp: {INSTALL}") from None
        params = xllamacpp.CommonParams()
        params.model.path, params.port, params.n_ctx, params.n_parallel = str(model), 0, context, 1
        params.warmup, params.verbosity, params.chat_template = False, -1, template
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        # by default it rounds keys, values and attention sums to 16 bits, which would hide differences between models
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter:
            params.lora_adapters = [info := xllamacpp.CommonAdapterLoraInfo()]
            info.path, info.scale = str(adapter), scale
        with theirs(f"llama.cpp does not take {adapter or model}", "export it again"):
            self.server = xllamacpp.Server(params)
        self.address = self.server.listening_address

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server = None  # the server stops with its last reference

    def ask(self, path: str, **body) -> dict:
        """Send a request to the server and return its answer; llama.cpp's server documentation describes both."""
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "text/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Log probabilities (vocab,) of the token that follows `ids`."""
        # taken before sampling; the bias forces a text token, as the server reports none for an end or half a character
        choice = self.ask("/tokenize", content="a")["tokens"][-1]
        body = dict(prompt=ids, n_predict=1, n_probs=10**6, cache_prompt=False, logit_bias=[[choice, 1e6]])
        [first] = self.ask("/completion", **body)["completion_probabilities"]
        rows = {row["id"]: row["logprob"] for row in first["top_logprobs"]}
        return torch.tensor([rows[i] for i in sorted(rows)])

    def opening(self, messages: list[dict]) -> list[int]:
        """Token ids of a conversation in the model's template, up to where the next answer begins."""
        text = self.ask("/apply-template", messages=messages)["prompt"]
        return self.ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def chat(self, messages: list[dict], max_new_tokens: int = 60, temperature: float = 0.0, seed: int = 0) -> str:
        """Answer a conversation, as llama.cpp would for any other program."""
        options = dict(max_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return self.ask("/v1/chat/completions", messages=messages, **options)["choices"][0]["message"]["content"]
