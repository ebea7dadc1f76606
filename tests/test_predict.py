"""Predictions, as far as Python holds them; tests/browser commits to them."""

import json

import numpy as np
import pytest
import torch

from llm.course.widgets import predict
from llm.course.widgets.explorer import bundle
from llm.errors import SettingError


def a_number(**more):
    return predict.number(
        "How many numbers will train?", **dict(low=1_000, high=100_000_000, log=True, unit="numbers") | more
    )


def a_choice():
    return predict.choice("Which of these needs the fewest patterns?", ["the word", "the surface", "the noise"])


def a_curve(**more):
    return predict.curve(
        "Draw the loss.", **dict(x=[1, 4, 16], low=4.5, high=6, y_label="loss (nats)", log_x=True) | more
    )


def test_the_page_gets_the_script_the_question_and_no_truth():
    for guess, kind in ((a_number(), "number"), (a_choice(), "choice"), (a_curve(), "curve")):
        state = guess.get_state()
        assert state["kind"] == kind and state["question"] == guess.question and state["_esm"] == bundle()
        assert state["view"] == "predict" and state["guess"] is state["truth"] is None
        json.dumps(state["spec"])


@pytest.mark.parametrize("truth", [6_912_008, np.int64(6_912_008), torch.tensor(6_912_008), torch.tensor([6_912_008])])
def test_a_number_is_compared_with_a_number_of_any_kind(truth):
    guess = a_number()
    assert guess.compare(truth) is None
    assert guess.truth == 6_912_008 and type(guess.truth) is int


@pytest.mark.parametrize(
    "truth", [[3.0, 2.0, 1.0], np.array([3, 2, 1]), torch.tensor([3.0, 2.0, 1.0]), (3, 2, np.float32(1))]
)
def test_a_curve_is_compared_with_one_number_for_each_x(truth):
    guess = a_curve()
    guess.compare(truth)
    assert guess.truth == [3, 2, 1]
    json.dumps(guess.get_state()["truth"])


def test_a_choice_is_compared_with_one_of_its_options():
    guess = a_choice()
    guess.compare("the surface")
    assert guess.truth == "the surface"


@pytest.mark.parametrize(
    "guess, truth, says",
    [
        (a_choice(), "the surfaces", "'the surfaces' is not one of the options: the word, the surface, the noise"),
        (a_choice(), 1, "1 is not one of the options"),
        (a_number(), "many", "a finite number is needed, not 'many'"),
        (a_number(), True, "a finite number"),
        (a_number(), float("nan"), "a finite number"),
        (a_number(), torch.ones(2), "a finite number"),
        (a_number(), [1], "a finite number"),
        (a_number(), 0, "above zero, not 0"),
        (a_curve(), 5.0, "one number for each x"),
        (a_curve(), "abc", "a finite number"),
        (a_curve(), [1, 2], "the curve has 3 points, and the truth has 2"),
        (a_curve(), [1, 2, None], "a finite number"),
        (a_curve(), torch.tensor(5.0), "one number for each x"),
    ],
)
def test_a_truth_of_another_kind_is_a_sentence(guess, truth, says):
    with pytest.raises(SettingError, match=says.replace("(", r"\(")):
        guess.compare(truth)
    assert guess.truth is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda: a_number(low=0),
        lambda: a_number(low=10, high=10),
        lambda: a_number(high="100"),
        lambda: predict.choice("Which?", ["one"]),
        lambda: predict.choice("Which?", ["one", "one"]),
        lambda: predict.choice("Which?", "ab"),
        lambda: predict.choice("Which?", [1, 2]),
        lambda: a_curve(x=[1]),
        lambda: a_curve(x=[4, 1]),
        lambda: a_curve(x=[0, 1]),
    ],
)
def test_a_question_that_nobody_can_answer_is_refused(ask):
    with pytest.raises(SettingError):
        ask()


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="units"):
        a_number(units="numbers")


def test_a_reader_without_a_kernel_sees_the_question_in_words():
    begins = "(a question to answer before the next cell: "
    assert repr(a_number()) == f"{begins}How many numbers will train? From 1,000 to 100,000,000 numbers.)"
    options = "Options: the word, the surface, the noise.)"
    assert repr(a_choice()) == f"{begins}Which of these needs the fewest patterns? {options}"
    assert repr(a_curve()) == f"{begins}Draw the loss. From 4.5 to 6.)"


def test_predictions_of_one_kernel_share_a_score():
    assert a_number().notebook == a_choice().notebook == predict.NOTEBOOK


def test_whole_numbers_are_asked_for_in_whole_numbers_and_closeness_has_a_default():
    assert a_number().spec["whole"] and a_number().spec["close"] == 2
    share = predict.number("Which share?", low=0, high=1)
    assert not share.spec["whole"] and share.spec["close"] == 0.1
    assert a_curve().spec["close"] == pytest.approx(0.15) and a_curve(close=0.2).spec["close"] == 0.2
