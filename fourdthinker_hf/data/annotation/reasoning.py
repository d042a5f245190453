"""The reasoning of a question about a real shot: it follows the evidence, and pictures it on the way.

Locate the span, choose what to go by, picture it, read the change, conclude: with one `<output_image>` for each of the
question's looks, in their order, and the figures that were measured there. `write` does so offline, of phrases drawn
anew each time; `rewrite` has a language model say the same in words of its own, and keeps only what passes `check`.
"""

import re
from collections.abc import Sequence

import numpy as np

from ...processing_fourdthinker import OUTPUT_IMAGE
from ..vocabulary import format_seconds
from .questions import Asked
from .vlm_client import Chat

TRIES, LONGEST = 3, 1500  # replies asked for; characters of one


class FormatError(ValueError):
    """A reasoning that is not what it has to be; the message says why."""


LOCATE = (
    "The question is about the span {span}.",
    "What counts is what happens {span}.",
    "I only look at the part {span}.",
    "First, the time: {span}.",
    "I go through the clip {span}.",
    "The span to look at runs {span}.",
)
REFERENCE = (
    "To tell how the camera moves I need something to go by: the {x}.",
    "The {x} is a good mark to read the camera's motion from.",
    "I take the {x} as my reference and watch how it shifts in the picture.",
    "If the camera moves, the {x} has to shift in the picture.",
)
WATCH = (
    "The object to follow is the {x}.",
    "I keep my eyes on the {x}.",
    "It is the {x} that matters here.",
    "Let me follow the {x}.",
)
WATCH_TWO = (
    "Two objects matter: the {x} and the {y}.",
    "I have to hold the {x} against the {y}.",
    "Let me follow both the {x} and the {y}.",
    "I compare two things, the {x} and the {y}.",
)
PICTURE = (
    "At {time} I picture the {name}: {image}.",
    "This is the {name} at {time}: {image}.",
    "I imagine the {name} as it is at {time}: {image}.",
    "The {name} at {time} looks like this: {image}.",
    "Now the moment {time}, with the {name}: {image}.",
)
PLACES = (
    "The {name} is {places}.",
    "I read where the {name} is: {places}.",
    "In these pictures the {name} is {places}.",
    "Measured in shares of the picture, the {name} is {places}.",
)
STEADY = (
    "With the camera's own motion taken out:",
    "Leaving aside what the camera does itself:",
    "As it would look if the camera had kept still:",
)
CONCLUDE = (
    "So the answer is: {answer}.",
    "Therefore: {answer}.",
    "This means: {answer}.",
    "From this I conclude: {answer}.",
    "All in all: {answer}.",
)
EFFECTS = {
    "static": ("the background keeps its place", "nothing of the background shifts"),
    "pan left": ("near and far shift right alike", "the whole view slides to the right"),
    "pan right": ("near and far shift left alike", "the whole view slides to the left"),
    "tilt up": ("near and far sink alike", "the whole view slides down"),
    "tilt down": ("near and far rise alike", "the whole view slides up"),
    "roll left": ("the view turns clockwise about its middle", "the view leans to the right"),
    "roll right": ("the view turns counterclockwise about its middle", "the view leans to the left"),
    "dolly in": ("things grow and move away from the middle", "the view spreads outward"),
    "dolly out": ("things shrink and move toward the middle", "the view closes in"),
    "truck left": ("near things shift right more than far ones", "the foreground passes to the right"),
    "truck right": ("near things shift left more than far ones", "the foreground passes to the left"),
    "pedestal up": ("near things sink more than far ones", "the foreground drops"),
    "pedestal down": ("near things rise more than far ones", "the foreground comes up"),
}
LOOKS = {  # what an answer's part looks like
    "grows": ("it gets smaller, so it gets farther", "its size shrinks with the distance"),
    "shrinks": ("it gets larger, so it comes nearer", "its size grows as it comes closer"),
    "stays the same": ("its size hardly changes, nor does the distance", "it stays as large as it is, and as far"),
    "speeds up": ("its steps get longer", "it covers more and more in the same time"),
    "slows down": ("its steps get shorter", "it covers less and less in the same time"),
    "keeps its speed": ("its steps stay as long", "it covers as much in the same time"),
    "the first is faster": ("the {x} covers more than the {y}", "the {x} outruns the {y}"),
    "the second is faster": ("the {y} covers more than the {x}", "the {y} outruns the {x}"),
    "left": ("the {x} is on the left of the {y}", "the {y} has the {x} on its left"),
    "right": ("the {x} is on the right of the {y}", "the {y} has the {x} on its right"),
    "to the left": ("it shifts left and keeps its size", "it crosses the view from right to left"),
    "to the right": ("it shifts right and keeps its size", "it crosses the view from left to right"),
    "toward the camera": ("it gets larger and comes nearer", "it grows, as what comes closer does"),
    "away from the camera": ("it gets smaller and goes farther", "it shrinks, as what leaves does"),
}


def write(asked: Asked, rng: np.random.Generator) -> str:
    """Reasoning of phrases drawn by `rng`."""

    def draw(phrases: Sequence[str]) -> str:
        return phrases[rng.integers(len(phrases))]

    names = dict(zip("xy", asked.names, strict=False))
    reference = REFERENCE if asked.task == "camera_motion" else WATCH if len(asked.names) == 1 else WATCH_TWO
    said = [
        draw(LOCATE).format(span=f"from {format_seconds(asked.start)} to {format_seconds(asked.end)}"),
        draw(reference),
    ]
    style = draw(PICTURE)
    for (track, _), time in zip(asked.looks, asked.times, strict=True):
        name = asked.names[asked.tracks.index(track)]
        said.append(style.format(name=name, time=format_seconds(time), image=OUTPUT_IMAGE))
    if asked.steadied:
        said.append(draw(STEADY))
    style = draw(PLACES)
    for track, name in zip(asked.tracks, asked.names, strict=True):
        moments = [k for k, (i, _) in enumerate(asked.looks) if i == track]
        places = ", then ".join(_place(asked.places[k]) for k in dict.fromkeys(moments))
        said.append(style.format(name=name, places=places))
    camera = asked.task == "camera_motion"
    parts = asked.answer.split(" and ") if camera else asked.answer.split(", then ")
    signs = (" and " if camera else ", then ").join(draw((EFFECTS if camera else LOOKS)[part]) for part in parts)
    said += [signs[0].upper() + signs[1:] + ".", draw(CONCLUDE).format(answer=asked.answer)]
    return " ".join(said).replace("{x}", names["x"]).replace("{y}", names.get("y", ""))


def _place(place: tuple[float, float, float]) -> str:
    x, y, size = (round(100 * value) for value in place)
    return f"{x}% across, {y}% down and {size}% large"


def rewrite(asked: Asked, text: str, chat: Chat, seed: int = 0) -> str:
    """The reasoning `text` in the words of a language model; FormatError if none of `TRIES` replies passes
    `check`, ChatError if there is none."""
    order = (
        "Rewrite the reasoning below, about a question on a video clip, in your own words: a person who thinks aloud. "
        "Keep its order: the span, what to go by, the pictures, what is read from them, the conclusion. "
        f"Keep every {OUTPUT_IMAGE} exactly as it is written, {len(asked.looks)} in all, each right after the object "
        "and the time that it shows. Keep the times. Add no fact. End with the answer, word for word. "
        f"Reply with the reasoning alone.\n\nQuestion: {asked.question}\nAnswer: {asked.answer}\nReasoning: {text}"
    )
    messages = [{"role": "user", "content": order}]
    for number in range(TRIES):
        reply = " ".join(chat.ask(messages, temperature=0.8, seed=seed + number).split())
        try:
            check(asked, reply)
            return reply
        except FormatError as error:
            wrong = str(error)
            messages = [
                messages[0],
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"Not yet: {wrong}. Write it again."},
            ]
    raise FormatError(f"{chat.model} failed {TRIES} times to write a reasoning: {wrong}")


def check(asked: Asked, text: str) -> None:
    """FormatError if `text` is no reasoning of the question: its pictures, its times, its answer at the end."""
    if len(text) > LONGEST:
        raise FormatError(f"it has {len(text)} characters, at most {LONGEST} are allowed")
    *before, end = text.split(OUTPUT_IMAGE)
    if len(before) != len(asked.looks):
        raise FormatError(f"it has {len(before)} {OUTPUT_IMAGE}, it must have {len(asked.looks)}")
    if found := re.search(r"</?\w[^>]*>", "".join([*before, end])):
        raise FormatError(f"it has a {found[0]}, no tag but {OUTPUT_IMAGE} is allowed")
    for number, (part, time) in enumerate(zip(before, asked.times, strict=True), start=1):
        if not re.search(rf"(?<![\d.]){re.escape(f'{time:g}')}(?![\d]|\.\d)", part):
            raise FormatError(f"the time {format_seconds(time)} is missing before {OUTPUT_IMAGE} number {number}")
    tail = end.rstrip(" .!").lower()
    if not tail.endswith(asked.answer.lower()):
        raise FormatError(f"it must end with the answer, {asked.answer!r}, word for word")
