"""What the rounding explorer is given; tests/browser moves it."""

import torch

from llm.course.four_bits import BLOCKS, rounded
from llm.course.toy_matrices import noise
from llm.course.widgets.rounding_explorer import rounding_explorer
from llm.quantize import FORMATS

LAYERS = {"one": noise(64, 128), "two": noise(96, 64, seed=1)}


def test_every_scheme_has_the_numbers_of_the_layer_that_is_rounded_so():
    data = rounding_explorer(LAYERS).data
    assert len(data["schemes"]) == len(LAYERS) * len(FORMATS) * len(BLOCKS) * 2
    for scheme in data["schemes"]:
        name, format, block, double = (scheme[key] for key in ("layer", "format", "block", "double"))
        part = rounded(LAYERS[name], format, block, double)
        assert (scheme["bits"], scheme["error"]) == (part.bits, part.error)
        assert sum(scheme["counts"]) == LAYERS[name].numel()
        assert torch.allclose(torch.tensor(scheme["counts"]) / LAYERS[name].numel(), part.shares)
        assert torch.tensor(data["formats"][format]["levels"]).equal(part.levels)
        assert data["weights"][name][double][BLOCKS.index(block)] == part.shape.int().tolist()


def test_its_page_is_small():
    explorer = rounding_explorer({name: noise(128, 512, seed=i) for i, name in enumerate("abc")})
    data = explorer._repr_html_().split("</script>")[0]
    assert len(data) < 80_000
