"""How far llama.cpp's log probabilities are from ours, base by base: `python tests/bench/llama_cpp.py ADAPTER`.

ADAPTER: a LoRA over SmolLM2. Printed for each precision of the base's GGUF: the largest and the mean difference over the
vocabulary and eight places of a text, and at how many the likeliest token is the same; the merged model last.
"""

import sys
import tempfile
from pathlib import Path

import torch

from llm import bases
from llm.adapters import load_adapter
from llm.export.gguf import write_adapter, write_merged
from llm.export.llama_cpp import Server
from llm.paths import CACHE
from llm.text.download import fetch_model

TEXT = "The people of the United States, in order to form a more perfect union, establish justice and"


@torch.no_grad()
def ours(model, ids):
    return model(torch.tensor([ids])).logits[0, -8:].log_softmax(-1)


def compare(name, wanted, ids, *files):
    with Server(*files) as server:
        theirs = torch.stack([server.logprobs(ids[: len(ids) - 7 + i]) for i in range(8)])
    off, same = (theirs - wanted).abs(), (theirs.argmax(1) == wanted.argmax(1)).sum()
    print(f"{name:24} largest {off.max():.1e}  mean {off.mean():.1e}  same likeliest token {same} of 8", flush=True)


def main(adapter):
    base, packed = bases.load("smollm2"), fetch_model("smollm2", CACHE)
    ids = base.tokenizer.encode(TEXT)
    plain = ours(base.model, ids)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.gguf" for name in ("adapter", "F32", "F16", "merged F32", "merged F16")}
        for name in ("F32", "F16"):
            write_merged(base, packed, files[name], torch.float32 if name == "F32" else torch.float16)
        write_adapter(
            base := bases.Base(**vars(base) | dict(model=load_adapter(base.model, adapter))), files["adapter"]
        )
        wanted = ours(base.model, ids)
        print(f"the adapter moves them by {(wanted - plain).abs().max():.1f} at most")
        for name, file in (("F32", files["F32"]), ("F16", files["F16"]), ("Q4_1", packed)):
            compare(f"base alone, {name}", plain, ids, file)
            compare(f"adapter over {name}", wanted, ids, file, files["adapter"])
        for name in ("merged F32", "merged F16"):
            write_merged(base, packed, files[name], torch.float32 if name == "merged F32" else torch.float16)
            compare(name, wanted, ids, files[name])


if __name__ == "__main__":
    main(sys.argv[1])
