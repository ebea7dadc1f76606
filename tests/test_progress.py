"""Progress bars, as a stored notebook shows them."""

from llm.course.widgets.progress import tqdm


def test_a_bar_counts_like_tqdms_and_its_stand_in_is_the_same_before_and_after():
    bar = tqdm(range(1_030), display=False)
    before = repr(bar.container)
    assert list(bar) == list(range(1_030)) and bar.n == 1_030
    assert repr(bar.container) == before == "(a progress bar over 1,030 steps)"


def test_a_bar_without_an_end_has_a_stand_in_too():
    bar = tqdm(iter([1, 2]), display=False)
    assert list(bar) == [1, 2] and repr(bar.container) == "(a progress bar)"
