"""The rewards of 4DRL, and how answers without options are judged."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourdthinker_hf.answers import match_number
from fourdthinker_hf.training import rewards

OPTIONS = ["to the left", "to the right"]
RIGHT = "<think>it moves <output_image> so</think><answer>B. to the right</answer>"


def test_docstrings():
    assert doctest.testmod(rewards) == (0, 3)


@pytest.mark.parametrize(
    ("reply", "accuracy", "form", "imagery"),
    [
        (RIGHT, 1, 1, 1),
        ("<think>so</think>\n<answer>b</answer>", 1, 1, 0),
        ("<think>so <|latent_start|><|latent_pad|><|latent_end|></think><answer>to the right</answer>", 1, 1, 0),
        ("<think><output_image></think><answer>A</answer>", 0, 1, 1),
        ("<answer>B</answer>", 1, 0, 0),
        ("<think>so</think><answer>A: to the right</answer>", 0, 1, 0),
        ("<think>so</think><answer>C</answer>", 0, 1, 0),
        ("<think>B</think><answer></answer>", 0, 0, 0),
        ("<output_image><think>so</think><answer>B</answer>", 1, 0, 0),
        ("<think>so</think><answer>B</answer> I am sure.", 1, 0, 0),
        ("<think>B B B", 0, 0, 0),
        ("it is B", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_the_rewards_of_a_reply(reply, accuracy, form, imagery):
    assert rewards.accuracy([reply], answer=[OPTIONS[1]], options=[OPTIONS], task=["any"]) == [accuracy]
    assert rewards.format([reply]) == [form]
    assert rewards.imagery([reply]) == [imagery]


def test_each_reply_is_judged_by_its_own_record():
    replies = ["<answer>A</answer>", "<answer>A</answer>", "<answer>2.1 m</answer>", "<answer>A</answer>"]
    given, options = ["to the left", "to the right", "2 m", "2 m"], [OPTIONS, OPTIONS, None, []]
    assert rewards.accuracy(replies, answer=given, options=options) == [1.0, 0.0, 1.0, 0.0]


@given(st.text() | st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "B", " ", "1e999"])))
def test_no_reply_raises(parts):
    reply = "".join(parts)
    for options, answer in ((OPTIONS, OPTIONS[1]), (None, "3 m"), (None, "red")):
        reward = rewards.accuracy([reply], answer=[answer], options=[options])
        assert reward in ([0.0], [1.0])
    assert rewards.format([reply]) in ([0.0], [1.0]) and rewards.imagery([reply]) in ([0.0], [1.0])


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("9.5 m", "10 m", True),
        ("-3", "3", False),
        ("2.1", "2", True),
        ("\u22123", "-3", True),
        ("0", "0", True),
        ("0.01", "0", False),
        ("5 s", "5 m", False),
        ("5", "5 m", True),
        ("5 m", "5", False),
        (".5", "0.5", True),
        ("1e1", "10", True),
        ("about 10", "10", False),
        ("10 or 20", "10", False),
        ("nan", "1", False),
        ("1e999", "1", False),
        ("The Red Ball.", "the red ball", True),
        ("A", "red", False),
        ("", "", False),
        (None, "3", False),
    ],
)
def test_a_free_answer(answer, expected, right):
    assert match_number(answer, expected) is right


@given(st.integers(1, 10**6), st.integers(-30, 30))
def test_a_number_is_right_within_the_tolerance(value, hundredths):
    near = value * (100 + hundredths) / 100
    assert match_number(f"{near:.2f} m", f"{value} m") is (abs(hundredths) <= 5)
