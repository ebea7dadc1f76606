"""Two explorers: the best rank-r part of a matrix, and one layer that LoRA wraps."""

from llm import spectra
from llm.course import toy_matrices
from llm.course.figures import factors, layer
from llm.course.widgets.old_explorer import Explorer, choice, slider, undelayed


def rank_explorer() -> Explorer:
    """A matrix of one's choice and its best rank-r factors."""

    with undelayed():
        targets = {name: make() for name, make in toy_matrices.MATRICES.items()}
        done = {name: spectra.decompose(target) for name, target in targets.items()}

    def numbers(which: str, r: int) -> toy_matrices.Approximation:
        return toy_matrices.approximate(targets[which], r, done[which])

    def describe(part: toy_matrices.Approximation) -> str:
        whole = part.target.numel()
        return (
            f"rank {part.A.size(1)}: {part.numbers:,} numbers in A and B for {whole:,} in the matrix, "
            f"{whole / part.numbers:.1f} times fewer; {part.error:.1%} off"
        )

    controls = {"which": choice("matrix", list(toy_matrices.MATRICES)), "r": slider("rank r", 2, 1, 32)}
    return Explorer(controls, numbers, factors, describe)


def layer_explorer() -> Explorer:
    """One wrapped layer: its rank, its alpha and its width move, and W, A, B, their product and the sum follow."""

    def describe(part: toy_matrices.Wrapped) -> str:
        (d, r), whole = part.A.shape, part.W.numel()
        numbers, moved = part.A.numel() + part.B.numel(), part.update.norm() / part.W.norm()
        return (
            f"r = {r}, d = {d}: {numbers:,} numbers in A and B for {whole:,} in W, {whole / numbers:.1f} times fewer; "
            f"at alpha = {part.scale:g} the update is {moved:.0%} of W's length"
        )

    controls = {
        "d": slider("width d", 128, toy_matrices.THICKEST, toy_matrices.WIDEST, step=8),
        "r": slider("rank r", 8, 1, toy_matrices.THICKEST),
        "alpha": slider("alpha", 2, 0, 16),
    }
    return Explorer(controls, toy_matrices.wrapped, layer, describe)
