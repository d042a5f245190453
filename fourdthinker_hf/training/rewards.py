"""Rewards of 4DRL, in TRL's form: `f(completions, **columns) -> list[float]`, one number for each reply.

They are pure functions of the reply's text. They read it with `answers.py`, as evaluation does, and never raise: a
reply that cannot be read gets 0.
"""

from ..answers import judge, parse
from ..processing_fourdthinker import OUTPUT_IMAGE


def accuracy(completions: list[str], answer: list[str], options: list[list[str] | None], **kwargs) -> list[float]:
    """1.0 for a right answer, else 0.0; see [`judge`]. It must name the option `answer`; without options it must be
    the number `answer` to within 5%, or exactly its text.

    >>> accuracy(["<answer>B</answer>", "<answer>10.2 m</answer>"], ["left", "10 m"], [["right", "left"], None])
    [1.0, 1.0]
    """
    rows = zip(completions, answer, options, strict=True)
    return [float(judge(text, expected, choices).is_right) for text, expected, choices in rows]


def format(completions: list[str], **kwargs) -> list[float]:
    """1.0 for `<think>..</think><answer>..</answer>` and nothing else, if the answer is not empty, else 0.0.

    >>> format(["<think>so</think><answer>B</answer>", "<answer>B</answer>"])
    [1.0, 0.0]
    """
    parsed = [parse(text) for text in completions]
    return [float(reply.well_formed and bool(reply.answer)) for reply in parsed]


def imagery(completions: list[str], **kwargs) -> list[float]:
    """1.0 for a well-formed reply with a mental image inside `<think>`, else 0.0.

    >>> imagery(["<think>so <output_image></think><answer>B</answer>", "<think>so</think><answer>B</answer>"])
    [1.0, 0.0]
    """
    parsed = [parse(text) for text in completions]
    return [float(reply.well_formed and OUTPUT_IMAGE in (reply.think or "")) for reply in parsed]
