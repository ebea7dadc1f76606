"""What several test files share: a base so small that a step takes a tenth of a second, in a folder of its own."""

import pytest
import torch

from llm import bases
from llm.model import GPT, GPTConfig


def save_tiny(folder, seed=0, **config):
    torch.manual_seed(seed)
    bases.save(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, **config)).half().float(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a base of one block that reads 64 tokens."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def dropping(tmp_path_factory):
    """The same with dropout, whose random draws a resumed run has to draw again."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "dropping", dropout=0.2)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Another base of the same shapes."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "stranger", seed=1)
