"""Two explorers: the best rank-r part of a matrix, and one layer that LoRA wraps."""

from llm import spectra
from llm.course import toy_matrices
from llm.course.widgets.explorer import Explorer, packed

CLOSE = 0.05  # the error for which the sentence names the rank


def rank_explorer(r: int = 2) -> Explorer:
    """A matrix of one's choice or drawing, its best rank-r factors, and the sizes of its patterns."""
    about = (
        "Three matrices, each with its best copy A B of rank r, what the copy leaves out, and the sizes of all patterns. "
        "A word has seven patterns, a smooth surface a few, and noise as many as it has rows."
    )
    matrices = []
    for name, make in toy_matrices.MATRICES.items():
        if make is toy_matrices.word:  # it can be drawn on, so the page takes it apart
            matrices.append(dict(name=name, pixels=toy_matrices.pixels().int().tolist(), block=9))
            continue
        target = make()
        sizes = spectra.decompose(target).s
        held = int((sizes > 1e-4 * sizes[0]).sum())  # smaller patterns are lost in 16 bits
        part = toy_matrices.approximate(target, held)
        factors = dict(U=packed(part.A, bits=16), V=packed(part.B, bits=16))
        matrices.append(dict(name=name, sizes=sizes.tolist(), **factors))
    return Explorer("rank", about, matrices=matrices, close=CLOSE, r=r)


def layer_explorer(d: int = 128, r: int = 8, alpha: int = 2) -> Explorer:
    """One wrapped layer: its rank, its alpha and its width move, and W, A, B, their product and the sum follow."""
    about = (
        "One layer with LoRA: W, the thin A and B, alpha times their product, and the sum. "
        "Width and rank say how many numbers train; alpha says only how long the update is."
    )
    part = toy_matrices.wrapped(toy_matrices.WIDEST, toy_matrices.THICKEST, 1)
    pictures = {name: packed(matrix) for name, matrix in (("W", part.W), ("A", part.A), ("B", part.B))}
    return Explorer("layer", about, **pictures, most=4 * part.W.std().item(), d=d, r=r, alpha=alpha)
