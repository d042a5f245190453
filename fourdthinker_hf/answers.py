"""Reads a model's reply: its reasoning in `<think>`, its answer in `<answer>`, the option that the answer names, and
whether it is right.

This is the project's only parser of replies: rewards, evaluation and demo use it. It never searches a sentence for a
letter ("A car turns left" does not name option A): the whole answer is an option's letter, its text, or both, or it
names no option.
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_LATENT = re.compile(r"<\|latent_(?:start|pad|end)\|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAG = re.compile(f"({'|'.join(TAGS)})")
_THINK = re.compile(r"<think>((?:(?!</?think>|<answer>).)*)", re.DOTALL)  # up to where it is closed, if it is
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)

# These are matched against normalised text, without surrounding brackets and punctuation (see `_normalise`).
_LETTER = re.compile(r"(?:(?:option|choice):? )?[(\[]?([a-z])")
_LETTER_AND_TEXT = re.compile(r"(?:(?:option|choice):? )?[(\[]?([a-z])(?:[*_]*[)\].:,]+[*_]*| [-\u2013\u2014] ) ?(.+)")
_NUMBER = re.compile(r"([+\-\u2212]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?) ?(\D*)")
_OPENING = " \"'`*_([{\u2018\u201c"
_CLOSING = " \"'`*_)]}\u2019\u201d.,:;!?"


@dataclass(frozen=True)
class ParsedAnswer:
    """The parts of a reply, stripped and without latent tokens; None where a part is missing."""

    think: str | None
    answer: str | None
    well_formed: bool


def parse(text: str) -> ParsedAnswer:
    """Splits a reply. `well_formed`: `<think>..</think>`, then `<answer>..</answer>`, once each, and nothing else.

    Latent tokens may stand anywhere inside the two. A reply that is not well-formed still has an answer: the last
    `<answer>..</answer>` or, without one, what follows an unclosed `<answer>`.

    >>> parse("<think>It turns.<|latent_start|><|latent_pad|><|latent_end|></think> <answer>B</answer>")
    ParsedAnswer(think='It turns.', answer='B', well_formed=True)
    >>> parse("I would say <answer>left")
    ParsedAnswer(think=None, answer='left', well_formed=False)
    """
    parts = _TAG.split(text)  # text, tag, text, tag, ..., text
    outside = "".join(parts[::4])
    well_formed = parts[1::2] == ["<think>", "</think>", "<answer>", "</answer>"] and not outside.strip()
    think = _THINK.search(text)
    answers = _ANSWER.findall(text) or text.rsplit("<answer>", 1)[1:]
    return ParsedAnswer(_clean(think[1]) if think else None, _clean(answers[-1]) if answers else None, well_formed)


def match_option(answer: str | None, options: Sequence[str]) -> tuple[int | None, str | None]:
    """The option that an answer names by its letter, its text, or both: (its index, None), or (None, the reason why
    the answer names none).

    A letter may be written as "B", "(B)", "B." or "Option B"; both as "B: text", "(B) text" or "B - text". Case,
    spaces and surrounding punctuation do not matter. An option's text takes precedence over a letter, so options may
    be letters themselves.

    >>> match_option("(b)", ["right", "left"])
    (1, None)
    >>> match_option("A: Left.", ["right", "left"])
    (None, "the letter A and the text 'left' name different options")
    """
    normalised, texts = _normalise(answer or ""), [_normalise(option) for option in options]
    for key, candidates in ((answer, list(options)), (normalised, texts)):
        if key and candidates.count(key) == 1:
            return candidates.index(key), None
    if not normalised:
        return None, "there is no answer"
    if normalised in texts:
        return None, f"the text {normalised!r} is that of several options"
    if letter := _LETTER.fullmatch(normalised):
        return _by_letter(letter[1], len(options))
    if not (both := _LETTER_AND_TEXT.fullmatch(normalised)):
        return None, f"{normalised!r} is neither an option's letter nor its text"
    index, reason = _by_letter(both[1], len(options))
    text = _normalise(both[2])
    if index is None or texts[index] == text:
        return index, reason
    if text in texts:
        return None, f"the letter {both[1].upper()} and the text {text!r} name different options"
    return None, f"the letter {both[1].upper()} stands beside {text!r}, which is no option's text"


def match_number(answer: str | None, expected: str, tolerance: float = 0.05) -> bool:
    """Whether a free answer agrees with the expected one: a number within the relative `tolerance`, in the same unit
    or without one; or, if either is not a number, the same text. The tolerance of 5% is this project's choice: what is
    measured in a video is hardly more exact.

    >>> match_number("10.4", "10 m"), match_number("10.4 s", "10 m"), match_number("To the left.", "to the left")
    (True, False, True)
    """
    given, wanted = _normalise(answer or ""), _normalise(expected)
    numbers = [_NUMBER.fullmatch(text) for text in (given, wanted)]
    if None in numbers:
        return bool(given) and given == wanted
    (value, unit), (target, true_unit) = ((float(match[1].replace("\u2212", "-")), match[2]) for match in numbers)
    within = tolerance * abs(target) * (1 + 1e-9)  # so that 2.1 counts as 5% from 2, although 2.1 - 2 is rounded
    return unit in ("", true_unit) and abs(value - target) <= within


@dataclass(frozen=True)
class Choice:
    """The option that a reply chooses, by its index, and how: by its `"words"`, which name it, or, where they name
    none, by `"likelihood"`. `reason` says why its words name none. All are None for an open question."""

    option: int | None
    chosen_by: str | None
    reason: str | None


def choose_option(answer: str | None, options: Sequence[str], likeliest: int | None) -> Choice:
    """The option that the words of an `answer` name, or else the one with the index `likeliest`.

    >>> choose_option("left", ["right", "left"], likeliest=0)
    Choice(option=1, chosen_by='words', reason=None)
    >>> choose_option("up", ["right", "left"], likeliest=0)
    Choice(option=0, chosen_by='likelihood', reason="'up' is neither an option's letter nor its text")
    """
    option, reason = match_option(answer, options)
    if option is not None:
        return Choice(option, "words", None)
    return Choice(likeliest, None if likeliest is None else "likelihood", reason)


@dataclass(frozen=True)
class Verdict:
    """Whether a reply is right. `option` is the index of the option that its words name (`None` if they name none or
    there are no options), and `reason` says why they name none. `is_right` judges the words alone, `is_choice_right`
    the `choice`, which is the likeliest option where the words name none."""

    is_right: bool
    parsed: ParsedAnswer
    option: int | None
    reason: str | None
    choice: Choice
    is_choice_right: bool


def judge(text: str, expected: str, options: Sequence[str] | None, likeliest: int | None = None) -> Verdict:
    """The verdict on a reply `text`. With `options` its answer must name the option `expected`; without
    options it must be the number `expected` to within 5%, or the same text (see [`match_number`]). `likeliest` is the
    index of the likeliest option, if it is known. No other code decides what is right.

    >>> judge("<answer>B</answer>", "left", ["right", "left"]).is_right
    True
    >>> judge("<answer>10.2 m</answer>", "10 m", None).is_right
    True
    >>> verdict = judge("<answer>up</answer>", "left", ["right", "left"], likeliest=1)
    >>> verdict.is_right, verdict.is_choice_right
    (False, True)
    """
    parsed = parse(text)
    if not options:
        is_right, reason = match_number(parsed.answer, expected), None if parsed.answer else "there is no answer"
        return Verdict(is_right, parsed, None, reason, Choice(None, None, reason), is_right)
    choice = choose_option(parsed.answer, options, likeliest)
    is_choice_right = choice.option is not None and options[choice.option] == expected
    named = choice.option if choice.chosen_by == "words" else None
    return Verdict(is_choice_right and named is not None, parsed, named, choice.reason, choice, is_choice_right)


def without_tags(text: str) -> str:
    """A part of a reply without `<think>`, `<answer>` and their ends, also where the last of them is cut.

    >>> without_tags("so it moves left.</think><ans")
    'so it moves left.'
    """
    text = _TAG.sub("", text)
    tail = text[text.rfind("<") :] if "<" in text else ""
    return (text.removesuffix(tail) if any(tag.startswith(tail) for tag in TAGS if tail) else text).strip()


def _by_letter(letter: str, num_options: int) -> tuple[int | None, str | None]:
    index = string.ascii_lowercase.index(letter)
    if index < num_options:
        return index, None
    return None, f"the letter {letter.upper()} is beyond the {num_options} options"


def _clean(text: str) -> str:
    return _LATENT.sub("", text).strip()


def _normalise(text: str) -> str:
    """Evens out case, character width and spacing, and removes surrounding punctuation. Signs and units ("-5", "+",
    "50%") stay."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.split()).lstrip(_OPENING).rstrip(_CLOSING)
