"""Rewards of 4DRL, in TRL's form: `f(completions, **columns) -> list[float]`, a number for each reply.

Pure functions of what a reply says. They read it by `answers.py`, as evaluation does, and never raise: a reply that
cannot be read gets 0.
"""

from ..answers import judge, parse
from ..processing_fourdthinker import OUTPUT_IMAGE


def accuracy(completions: list[str], answer: list[str], options: list[list[str] | None], **kwargs) -> list[float]:
    """1.0 for a right answer, else 0.0: it names the right one of the `options`; without any, it is the number
    `answer` to within 5%, or its very words.

    >>> accuracy(["<answer>B</answer>", "<answer>10.2 m</answer>"], ["left", "10 m"], [["right", "left"], None])
    [1.0, 1.0]
    """
    rows = zip(completions, answer, options, strict=True)
    return [float(judge(text, expected, choices).is_right) for text, expected, choices in rows]


def format(completions: list[str], **kwargs) -> list[float]:
    """1.0 for `<think>..</think><answer>..</answer>` and nothing else, with something in the answer, else 0.0.

    >>> format(["<think>so</think><answer>B</answer>", "<answer>B</answer>"])
    [1.0, 0.0]
    """
    parsed = [parse(text) for text in completions]
    return [float(reply.well_formed and bool(reply.answer)) for reply in parsed]


def imagery(completions: list[str], **kwargs) -> list[float]:
    """1.0 for a well-formed reply that pictures something while it thinks, else 0.0.

    >>> imagery(["<think>so <output_image></think><answer>B</answer>", "<think>so</think><answer>B</answer>"])
    [1.0, 0.0]
    """
    parsed = [parse(text) for text in completions]
    return [float(reply.well_formed and OUTPUT_IMAGE in (reply.think or "")) for reply in parsed]
