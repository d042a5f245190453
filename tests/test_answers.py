import doctest

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourdthinker_hf import answers
from fourdthinker_hf.answers import ParsedAnswer, match_option, parse

BLOCK = "<|latent_start|><|latent_pad|><|latent_pad|><|latent_end|>"
OPTIONS = ["to the left", "to the right", "Up, then down", "it stays"]


def test_docstrings():
    assert doctest.testmod(answers).failed == 0


@pytest.mark.parametrize(
    ("text", "think", "answer", "well_formed"),
    [
        ("<think>t</think><answer>B</answer>", "t", "B", True),
        (" <think>a\nb</think>\n\n<answer> B </answer>\n", "a\nb", "B", True),
        (f"<think>a{BLOCK}b</think><answer>{BLOCK}B</answer>", "ab", "B", True),
        ("<think></think><answer></answer>", "", "", True),
        (f"<think>t</think>{BLOCK}<answer>B</answer>", "t", "B", False),
        ("Well: <think>t</think><answer>B</answer>", "t", "B", False),
        ("<think>t</think>so<answer>B</answer>", "t", "B", False),
        ("<think>t</think><answer>B</answer>.", "t", "B", False),
        ("<answer>B</answer><think>t</think>", "t", "B", False),
        ("<answer>B</answer>", None, "B", False),
        ("<think>t</think><answer>A</answer><answer>B</answer>", "t", "B", False),
        ("<think>t</think><answer>A</answer> no, <answer>B", "t", "A", False),
        ("<think>t</think><answer>B", "t", "B", False),
        ("<think>t <answer>B</answer>", "t", "B", False),
        ("<think>t", "t", None, False),
        ("<answer>A<answer>B</answer>", None, "B", False),
        ("<answer>A</answer></answer>", None, "A", False),
        ("</answer>B<answer>", None, "", False),
        ("<THINK>t</THINK><ANSWER>B</ANSWER>", None, None, False),
        ("B", None, None, False),
        ("", None, None, False),
    ],
)
def test_parse(text, think, answer, well_formed):
    assert parse(text) == ParsedAnswer(think, answer, well_formed)


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        " B\n",
        "(B)",
        "[b]",
        "B.",
        "B)",
        "B:",
        "**B**",
        "`B`",
        "Option B",
        "option (B).",
        "Choice: B",
        "（Ｂ）",
    ]
    + ["to the right", "To  the\tRIGHT.", '"to the right"', "**To the right!**"]
    + ["B: to the right", "B. To the right.", "(B) to the right", "B) to the right", "B - to the right"]
    + ["Option B: to the right", "**B.** to the right", "**B**: to the right", "B, to the right", "B:to the right"],
)
def test_names_the_second_option(answer):
    assert match_option(answer, OPTIONS) == (1, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        ("", "no answer"),
        (" ... ", "no answer"),
        ("A: to the right", "letter A and the text 'to the right' name different options"),
        ("A. because it turns", "letter A stands beside 'because it turns'"),
        ("E", "letter E is beyond the 4 options"),
        ("E: to the right", "letter E is beyond the 4 options"),
        ("A car moves to the right", "neither"),
        ("A or B", "neither"),
        ("AB", "neither"),
        ("A B", "neither"),
        ("the right", "neither"),
        ("I think it is B", "neither"),
        ("A to the right", "neither"),
    ],
)
def test_names_none_and_says_why(answer, reason):
    index, why = match_option(answer, OPTIONS)
    assert index is None and reason in why


def test_options_that_look_like_letters_signs_or_one_another():
    assert match_option("B", ["C", "A", "B"]) == (2, None)  # the text goes before the letter
    assert match_option("(a)", ["C", "A", "B"]) == (1, None)
    assert match_option("Option B", ["C", "A", "B"]) == (1, None)
    assert match_option("B: A", ["C", "A", "B"]) == (1, None)
    assert [match_option(text, ["-5", "5", "+5", "50%"])[0] for text in ("-5", "5", "+5.", "50%", "B")] == [
        0,
        1,
        2,
        3,
        1,
    ]
    assert match_option("?", ["!", "?"]) == (1, None)
    assert match_option("U-turn", ["left turn", "U-turn"]) == (1, None)
    assert match_option("left", ["left", "Left"]) == (0, None)  # exactly, before folded
    assert match_option("LEFT", ["left", "Left"]) == (None, "the text 'left' is that of several options")
    assert match_option("B. left", ["left", "left"]) == (1, None)
    assert match_option("A", []) == (None, "the letter A is beyond the 0 options")


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), max_size=5))
def test_never_raises(text, options):
    parsed = parse(text)
    for answer in (text, parsed.answer):
        index, reason = match_option(answer, options)
        assert (index is None) != (reason is None) and (index is None or 0 <= index < len(options))


tags = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", BLOCK, "B", " ", "\n", "left"])


@settings(deadline=None)
@given(st.lists(tags, max_size=12).map("".join))
def test_parse_of_any_order_of_tags(text):
    parsed = parse(text)
    assert (parsed.answer is None) == ("<answer>" not in text) and (parsed.think is None) == ("<think>" not in text)
    if parsed.well_formed:
        think, answer = text.split("</think>")
        assert think.strip().startswith("<think>") and answer.strip().startswith("<answer>")
        assert text.strip().endswith("</answer>") and text.count("<answer>") == text.count("<think>") == 1


FORMS = [
    "{letter}",
    "({letter})",
    "{letter}.",
    "{letter})",
    "Option {letter}",
    "option ({letter})",
    "{text}",
    " {text}. ",
]
FORMS += ["{letter}: {text}", "{letter}. {text}", "({letter}) {text}", "{letter} - {text}", "Option {letter}: {text}."]
words = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=2, max_size=20)


@settings(deadline=None)
@given(st.lists(words, min_size=2, max_size=26, unique_by=answers._normalise), st.data())
def test_every_form_of_every_option_maps_back(options, data):
    """For options that differ, and none of which reads as a letter or as a letter with a text."""
    for text in map(answers._normalise, options):
        assume(len(text) > 1 and not answers._LETTER.fullmatch(text) and not answers._LETTER_AND_TEXT.fullmatch(text))
    index = data.draw(st.integers(0, len(options) - 1))
    letter = data.draw(st.sampled_from([chr(ord("A") + index), chr(ord("a") + index)]))
    answer = data.draw(st.sampled_from(FORMS)).format(letter=letter, text=options[index])
    assert match_option(answer, options) == (index, None)
    assert match_option(parse(f"<think>x</think><answer>{answer}</answer>").answer, options) == (index, None)
