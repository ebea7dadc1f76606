"""The base model: the learner's own when there is one, nothing unpickled that could run, a resumed run that is the
same run, and a sentence for every file that is not a base."""

import json
import os
import pickle
from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.bases import load_base
from llm.bases import loading as own_base
from llm.course import pretraining
from llm.course.pretraining import pretrain
from llm.course.pretraining_mixture import MIXTURE, heldout, mixture
from llm.errors import BaseError
from llm.model import GPT, GPTConfig
from llm.paths import BASE
from llm.text import corpora, records
from llm.text.batches import batches, heldout_batches
from llm.training import evaluate

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(autouse=True)
def nobodys(monkeypatch, tmp_path):
    """A learner's folder that is still empty, whatever lies in the real one."""
    monkeypatch.setattr(own_base, "CHECKPOINT", tmp_path / "checkpoints" / "model.pt")


@pytest.fixture
def small(monkeypatch):
    """The chapter-12 model at a toy's size."""
    for module in (own_base, pretraining):
        monkeypatch.setattr(module, "GPTConfig", lambda **changes: replace(TINY, **changes))


@pytest.fixture
def shipped(tmp_path, small):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({k: v.half() for k, v in GPT(TINY).state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def own():
    path = own_base.CHECKPOINT
    path.parent.mkdir()
    return path


def load(shipped):
    return load_base(own_base.CHECKPOINT, shipped)


def assert_refused(shipped, *parts):
    with pytest.raises(BaseError) as caught:
        load(shipped)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 500 and all(str(part) in said for part in parts), said


def same(model, state):
    return all(torch.equal(p, state[name].float()) for name, p in model.state_dict().items())


# what is loaded


def test_without_a_checkpoint_the_shipped_base_comes_in_float32_ready_to_answer(shipped):
    model = load(shipped)
    assert same(model, load_file(shipped / "model.safetensors"))
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "step": 7}])
def test_the_learners_own_checkpoint_is_used_when_it_is_there(shipped, own, wrap):
    torch.manual_seed(5)
    mine = GPT(TINY).state_dict()
    torch.save(wrap(mine), own)
    assert same(load(shipped), mine)
    own.unlink()
    assert not same(load(shipped), mine)


def test_a_checkpoint_in_half_precision_is_taken_as_float32(shipped, own):
    mine = GPT(TINY).bfloat16().state_dict()
    torch.save(mine, own)
    model = load(shipped)
    assert same(model, mine) and {p.dtype for p in model.parameters()} == {torch.float32}


def test_each_call_gives_a_model_of_its_own(shipped):
    first = load(shipped)
    with torch.no_grad():
        first.lm_head.weight.zero_()
    assert load(shipped).lm_head.weight.any()


# what is refused


class Trap:
    """A pickle that leaves a mark when it is opened by whoever opens anything."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(shipped, own, tmp_path, save):
    save({"model": Trap(tmp_path / "mark")}, own)
    assert_refused(shipped, own, "not a plain PyTorch state dict", "torch.save(model.state_dict(), path)")
    assert not (tmp_path / "mark").exists()


def test_a_whole_pickled_model_is_refused_with_how_to_save_it(shipped, own):
    torch.save(GPT(TINY), own)
    assert_refused(shipped, own, "torch.save(model.state_dict(), path)", "move it away")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_truncated_checkpoint_is_refused(shipped, own, keep):
    torch.save(GPT(TINY).state_dict(), own)
    data = own.read_bytes()
    own.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert_refused(shipped, own, "not a plain PyTorch state dict", "move it away to use the shipped base")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("lm_head.weight"),
        lambda state: state.update(extra=torch.zeros(1)),
        lambda state: state.update({"transformer.wpe.weight": torch.zeros(8, 16)}),
        lambda state: state.update({"transformer.wpe.weight": "a string"}),
        lambda state: state.update({7: torch.zeros(1)}),
        lambda state: state.clear(),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_first_tensor_that_differs(shipped, own, change):
    state = dict(GPT(TINY).state_dict())
    change(state)
    torch.save(state, own)
    assert_refused(
        shipped, own, "holds another model than expected", "tensors differ", "move it away to use the shipped base"
    )


@pytest.mark.parametrize("found", [[1, 2], "text", 7, None, {"model": "gpt"}, {"model": None}, torch.zeros(3)])
def test_a_checkpoint_that_holds_no_tensors_by_name_is_refused(shipped, own, found):
    torch.save(found, own)
    assert_refused(shipped, own, "holds another model than expected")


def test_a_wrong_path_is_an_error_and_never_silently_the_shipped_base(shipped, tmp_path):
    with pytest.raises(BaseError, match="there is no checkpoint .*typo.pt: check the path") as caught:
        load_base(tmp_path / "typo.pt", shipped)
    assert "\n" not in str(caught.value)


def test_a_missing_base_is_one_sentence_with_the_command_that_brings_it_back(tmp_path):
    assert_refused(tmp_path / "nowhere", "is missing or damaged", "restore it with `git checkout data/base`")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_base_is_one_sentence_with_the_command_that_brings_it_back(shipped, keep):
    path = shipped / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert_refused(shipped, path, "is missing or damaged", "restore it with `git checkout data/base`")


# training it


@pytest.fixture
def toy_text(monkeypatch, small):
    """A toy's mixture: the stream and the held-out text of `pretrain`, without corpora."""
    tokens = torch.randint(97, (2000,), generator=torch.Generator().manual_seed(0))

    def stream(seed=0, start=0):
        return batches(tokens, rows=2, block=16, seed=seed, start=start)

    monkeypatch.setattr(pretraining, "mixture", stream)
    monkeypatch.setattr(pretraining, "heldout", lambda: {"toy": heldout_batches(tokens, 2, 16, 2)})


def test_pretraining_writes_a_base_that_loads_with_its_log_and_its_config(toy_text, tmp_path):
    rows = list(pretrain(tmp_path / "out", steps=6, every=2))
    assert [row["step"] for row in rows] == [2, 4, 6] and rows[-1]["tokens"] == 6 * 2 * 16
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "log.csv", "model.safetensors"]
    model = load(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tied_lm_head"] is False
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 4


def test_a_killed_run_resumes_and_ends_where_one_that_was_not_killed_does(toy_text, tmp_path):
    whole = list(pretrain(tmp_path / "whole", steps=8, every=2))
    assert len(list(islice(pretrain(tmp_path / "killed", steps=8, every=2), 2))) == 2
    assert sorted(os.listdir(tmp_path / "killed")) == ["log.csv", "resume.pt"]
    rest = list(pretrain(tmp_path / "killed", steps=8, every=2))
    assert [row["step"] for row in rest] == [6, 8]
    for one, other in zip(whole[2:], rest):
        assert one | dict(seconds=0) == other | dict(seconds=0)
    assert same(load(tmp_path / "killed"), load_file(tmp_path / "whole" / "model.safetensors"))


def test_embeddings_learn_at_a_rate_of_their_own(toy_text, tmp_path):
    assert pretraining.pretraining_rate("transformer.wte.weight") == pretraining.EMBEDDING_RATE
    assert pretraining.pretraining_rate("transformer.h.0.attn.c_attn.weight") == 2e-3


def test_the_mixture_has_the_declared_rows_of_every_register_and_resumes(monkeypatch):
    first = {"speeches": 1, "shakespeare": 2, "python": 3}
    toy = {name: corpora.Corpus(name, torch.full((500,), i), torch.full((500,), 10 + i)) for name, i in first.items()}
    monkeypatch.setattr(corpora, "load", toy.__getitem__)
    x, y = next(mixture())
    text = (x[:, 0] == x[:, -1]) & (x[:, 0] < 10)
    assert [int((x[text, 0] == i).sum()) for i in first.values()] == [MIXTURE[name] for name in first]
    assert len(x) == len(y) == sum(MIXTURE.values())
    third = list(islice(mixture(seed=4), 3))[2]
    assert all(torch.equal(a, b) for a, b in zip(third, next(mixture(seed=4, start=2))))
    assert {name: held[0][0][0, 0].item() for name, held in heldout(1).items() if name in first} == {
        name: 10 + i for name, i in first.items()
    }


# what ships


def test_the_base_that_ships_is_the_chapter_12_model_and_has_learnt_the_bases_records():
    model = load(BASE)
    assert sum(p.numel() for p in model.parameters()) == 13_665_280
    unseen = next(records.record_batches(8, seed=-7, schemas=records.BASE_SCHEMAS))
    assert evaluate(model, [unseen]) < 3  # one that knows nothing is at ln 50,257 = 10.8
