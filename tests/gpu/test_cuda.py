"""On a GPU the same calls do the same: losses, gradients, adapters, text, whole runs (`make gpu`)."""

import copy
import os
import subprocess
import sys
import warnings
from functools import partial
from itertools import islice, repeat

import pytest
import torch
from safetensors.torch import load_file

from llm.adapters import load_adapter, save_adapter
from llm.adapters.folder import TENSORS
from llm.bases import load_base, transformers_models
from llm.course import contents
from llm.course.tasks import answers, score
from llm.errors import TrainingError
from llm.finetune.resume import resume
from llm.finetune.run import begin
from llm.finetune.settings import Settings
from llm.lora import apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.loss import IGNORE, tiled_loss
from llm.model import GPT, GPTConfig
from llm.paths import ROOT
from llm.text.batches import UNSEEN
from llm.text.records import make_records, record_batches
from llm.training import best_device, evaluate, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
GPU = torch.device("cuda")
CPU = torch.device("cpu")
D, VOCAB, TOKENS = 128, 5003, 5000  # more tokens than one chunk has


@pytest.fixture(autouse=True)
def whole_float32():
    """Products of float32 in float32, as PyTorch has it unless somebody asks for TF32."""
    assert not torch.backends.cuda.matmul.allow_tf32


def problem(device, masked=0):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(TOKENS, D, generator=g), 0.1 * torch.randn(VOCAB, D, generator=g)
    targets = torch.randint(VOCAB, (TOKENS,), generator=g)
    targets[torch.randperm(TOKENS, generator=g)[:masked]] = IGNORE
    return hidden.to(device).requires_grad_(True), weight.to(device).requires_grad_(True), targets.to(device)


def loss_and_gradients(device, masked=0, precision="float32"):
    hidden, weight, targets = problem(device, masked)
    loss = tiled_loss(hidden, weight, targets, precision)
    loss.backward()
    return [t.detach().cpu() for t in (loss, hidden.grad, weight.grad)]


def off(one, other):
    """How far `one` is from `other`, as a share of it."""
    return ((one - other).norm() / other.norm()).item()


def model(device=GPU, **config):
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=2, **config)).to(device)


def adapted(device=GPU):
    """Wrapped where the CPU's random numbers are: one seed gives other ones on a GPU."""
    made = apply_lora(model(CPU), r=8, alpha=8)
    for layer in lora_layers(made).values():
        torch.nn.init.normal_(layer.B, std=0.02)
    return made.to(device)


def batch(rows=8, block=64, seed=0):
    ids = torch.randint(50257, (rows, block + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def test_the_best_device_is_the_gpu():
    assert best_device().type == "cuda"


@pytest.mark.parametrize("masked", [0, 1, TOKENS * 2 // 3, TOKENS - 1])
def test_loss_and_gradients_are_the_cpus(masked):
    for one, other in zip(loss_and_gradients(GPU, masked), loss_and_gradients(CPU, masked)):
        assert off(one, other) < 1e-5


def test_in_bfloat16_they_are_within_its_rounding():
    exact = loss_and_gradients(CPU, 100)
    rounded = loss_and_gradients(GPU, 100, "bfloat16")
    assert off(rounded[0], exact[0]) < 1e-3
    assert 1e-6 < max(off(a, b) for a, b in zip(rounded, exact)) < 1e-2


def test_where_nothing_counts_the_loss_is_nan_and_training_says_so_with_the_weights_untouched():
    tuned = adapted()
    before = [p.clone() for p in tuned.parameters()]
    x, y = batch()
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        next(train(tuned, repeat((x, torch.full_like(y, IGNORE))), steps=1, lr=1e-2))
    assert all(torch.equal(a, b) for a, b in zip(before, tuned.parameters()))


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_lora_learns_and_moves_its_factors_alone(precision):
    tuned = adapted()
    frozen = {n: p.clone() for n, p in tuned.named_parameters() if not p.requires_grad}
    losses = [s.loss for s in train(tuned, repeat(batch()), steps=30, lr=1e-2, precision=precision)]
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(p, frozen[n]) for n, p in tuned.named_parameters() if n in frozen)
    assert all(p.dtype == torch.float32 and p.device.type == "cuda" for p in tuned.parameters())


def test_in_float32_the_steps_are_those_of_the_cpu():
    def losses(device):
        return [s.loss for s in train(adapted(device), repeat(batch(2)), steps=5, lr=1e-3, precision="float32")]

    assert losses(GPU) == pytest.approx(losses(CPU), rel=1e-4)


def test_auto_trains_as_float32_does_to_within_bfloat16():
    def last(precision):
        return [*train(adapted(), repeat(batch()), steps=20, lr=3e-3, precision=precision)][-1].loss

    assert last("auto") == pytest.approx(last("float32"), rel=1e-2)


@pytest.mark.parametrize("options", [dict(), dict(accumulate=2), dict(weight_decay=0.1)])
def test_a_step_waits_for_the_gpu_once(options):
    tuned, x_y = adapted(), batch()
    steps = train(tuned, repeat(x_y), steps=4, lr=1e-3, **options)
    next(steps), next(steps)  # the first steps set up
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in said if "synchroniz" in str(w.message)]
    assert len(waits) == 1, waits


def test_rows_in_pieces_and_activations_worked_out_twice_give_the_same_steps():
    def factors(checkpointing=False, **options):
        tuned = adapted()
        if checkpointing:
            tuned.gradient_checkpointing_enable()
        for _ in train(tuned, repeat(batch(9)), steps=1, lr=1e-3, precision="float32", **options):
            pass
        return [p.grad for p in tuned.parameters() if p.requires_grad]

    plain = factors()
    for other in (factors(accumulate=4), factors(checkpointing=True)):
        assert all(off(a, b) < 1e-4 for a, b in zip(other, plain))


def test_checkpointing_keeps_less():
    def peak(checkpointing):
        tuned = apply_lora(GPT(GPTConfig(n_layer=8)).to(GPU), r=8)
        if checkpointing:
            tuned.gradient_checkpointing_enable()
        hidden, _ = tuned.train().hidden(batch(256)[0].to(GPU))  # without the head, whose chunks are larger than both
        return torch.cuda.memory_allocated()

    assert peak(True) < 0.5 * peak(False)


def test_an_adapter_goes_from_gpu_to_cpu_and_back(tmp_path):
    trained, x = adapted(), batch()[0]
    save_adapter(trained, tmp_path)
    with torch.no_grad():
        expected = trained(x.to(GPU)).cpu()
        for device in (GPU, CPU):
            other = load_adapter(model(device), tmp_path).eval()
            assert off(other(x.to(device)).cpu(), expected) < 1e-5
            assert all(p.device.type == device.type for p in other.parameters())


def test_merged_disabled_and_removed_as_on_a_cpu():
    x = batch()[0].to(GPU)
    with torch.no_grad():
        base, tuned = model()(x), adapted()
        answer = tuned(x)
        with lora_disabled(tuned):
            assert torch.equal(tuned(x), base)
        assert off(merge_lora(copy.deepcopy(tuned))(x), answer) < 1e-5
        assert torch.equal(remove_lora(tuned)(x), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_16_bit_base_the_factors_are_float32_and_learn(dtype):
    tuned = apply_lora(model().to(dtype), r=8, alpha=8)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    losses = [s.loss for s in train(tuned, repeat(batch()), steps=30, lr=1e-2)]
    assert losses[-1] < losses[0] - 0.3


def test_greedy_text_is_the_cpus_and_a_seed_repeats_a_draw():
    def text(device, **options):
        return adapted(device).generate(batch(3, 8)[0].to(device), 20, **options).cpu()

    assert (
        text(GPU, temperature=0.0) == text(CPU, temperature=0.0)
    ).float().mean() > 0.95  # a near tie may fall otherwise
    assert torch.equal(text(GPU, top_k=40, seed=1), text(GPU, top_k=40, seed=1))
    assert not torch.equal(text(GPU, top_k=40, seed=1), text(GPU, top_k=40, seed=2))
    first = text(GPU, temperature=0.0)[0, 8].item()
    assert text(GPU, temperature=0.0, never=[first])[0, 8].item() != first


def test_the_course_model_learns_the_records_on_the_gpu():
    tuned = apply_lora(load_base(), r=8, alpha=8, scaling="alpha/r").to(GPU)
    heldout = [*islice(record_batches(32, seed=UNSEEN), 2)]
    before = evaluate(tuned, heldout)
    for _ in train(tuned, record_batches(32, seed=0), steps=72, lr=1e-2):
        pass
    assert evaluate(tuned, heldout) < 0.1 * before
    unseen = make_records(32, seed=UNSEEN)
    assert score(answers(tuned, unseen), unseen)["right"] > 0.9


def test_a_model_of_transformers_learns_and_writes_on_the_gpu():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=503
    )
    torch.manual_seed(0)
    tuned = apply_lora(transformers.LlamaForCausalLM(config), r=4).to(GPU)
    tuned.gradient_checkpointing_enable()
    ids = torch.randint(503, (4, 33), generator=torch.Generator().manual_seed(0))
    steps = train(tuned, repeat((ids[:, :-1], ids[:, 1:])), steps=30, lr=1e-2, loss=transformers_models.loss)
    losses = [step.loss for step in steps]
    assert losses[-1] < losses[0] - 0.1


def test_an_adapter_made_here_opens_in_peft_on_the_gpu(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")

    def base():
        torch.manual_seed(0)
        sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=503)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(GPU).eval()

    tuned = apply_lora(base(), r=4)
    for layer in lora_layers(tuned).values():
        torch.nn.init.normal_(layer.B, std=0.02)
    save_adapter(tuned, tmp_path)
    x = torch.arange(24, device=GPU)[None]
    with torch.no_grad():
        assert off(peft.PeftModel.from_pretrained(base(), tmp_path)(x).logits, tuned(x).logits) < 1e-5


def test_a_run_is_saved_stopped_and_resumed_on_the_gpu(tmp_path, tiny):
    settings = Settings("records", tiny, rank=2, alpha=2.0, steps=8, rows=4, seed=1, lr=1e-3)
    through = begin(settings, tmp_path / "a", "cuda")
    for _ in through.steps():
        pass
    stopped = begin(settings, tmp_path / "b", "cuda")
    for _ in stopped.steps(stop=lambda: stopped.done == 3):
        pass
    for _ in resume(tmp_path / "b", device="cuda").steps():
        pass
    one, other = (load_file(tmp_path / name / TENSORS) for name in "ab")
    assert all(off(one[key], other[key]) < 1e-4 for key in one if one[key].norm() > 0)


def finetune(out, *options, processes):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *torchrun,
        "-m",
        "llm",
        "finetune",
        "records",
        "--steps",
        "3",
        "--out",
        str(out),
        *options,
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_torchrun_trains_over_nccl(tmp_path):
    ran = finetune(tmp_path / "a", processes=torch.cuda.device_count())
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a" / TENSORS).is_file()


def test_torchrun_with_more_processes_than_gpus_is_refused_in_a_sentence(tmp_path):
    ran = finetune(tmp_path / "a", processes=torch.cuda.device_count() + 1)
    assert ran.returncode != 0 and "has no GPU of its own" in ran.stderr


@pytest.mark.parametrize("name", ["fine_tune", "rank_and_savings", "time_and_memory"])
def test_a_notebook_that_uses_a_gpu_keeps_its_claims_there(name, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel"), pytest.importorskip("ipywidgets")
    notebook = nbformat.read(ROOT / "notebooks" / contents.file_name(name), as_version=4)
    patient = dict(timeout=1200, startup_timeout=1200, iopub_timeout=1200)
    run = partial(nbclient.NotebookClient, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}})
    run(notebook, **patient).execute()
