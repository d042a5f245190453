"""Writes the reasoning of a question about a real shot: it follows the evidence and pictures it on the way.

The reasoning names the span, says which object to watch, pictures it (one `<output_image>` for each target frame, in
their order), states what is measured there, and concludes. [`write_reasoning`] does so offline with phrases drawn at
random. [`rewrite_reasoning`] has a language model say the same in its own words, and keeps only a reply that passes
[`check_reasoning`].
"""

import re
from collections.abc import Sequence

import numpy as np

from ...processing_fourdthinker import OUTPUT_IMAGE
from ..question_vocabulary import format_seconds
from .questions import AnnotatedQuestion
from .vlm_client import VLMClient

MAX_TRIES, MAX_LENGTH = 3, 1500  # replies of the language model; characters of a reasoning


class ReasoningError(ValueError):
    """A text is not an acceptable reasoning of its question. The message says why."""


SPAN_PHRASES = (
    "The question is about the span {span}.",
    "What counts is what happens {span}.",
    "I only look at the part {span}.",
    "First, the time: {span}.",
    "I go through the clip {span}.",
    "The span to look at runs {span}.",
)
CAMERA_PHRASES = (
    "To tell what the camera does I watch the background.",
    "What moves by itself does not count here, only the background.",
    "I compare the whole view at both ends of the span.",
    "The camera's motion shows in what stands still in the scene.",
    "If the camera moves, everything that is fixed has to shift in the picture.",
)
VIEW_PHRASES = (
    "At {time} I picture the view: {image}.",
    "This is the view at {time}: {image}.",
    "I imagine what the camera sees at {time}: {image}.",
    "The whole picture at {time} looks like this: {image}.",
    "Now the moment {time}: {image}.",
)
SHIFT_PHRASES = (
    "From the first of these to the last, the background {shifts}.",
    "Between them the background {shifts}.",
    "Over this time, what is fixed in the scene {shifts}.",
    "Comparing the two, the background {shifts}.",
)
OBJECT_PHRASES = (
    "The object to follow is the {x}.",
    "I keep my eyes on the {x}.",
    "It is the {x} that matters here.",
    "Let me follow the {x}.",
)
TWO_OBJECTS_PHRASES = (
    "Two objects matter: the {x} and the {y}.",
    "I have to hold the {x} against the {y}.",
    "Let me follow both the {x} and the {y}.",
    "I compare two things, the {x} and the {y}.",
)
PICTURE_PHRASES = (
    "At {time} I picture the {name}: {image}.",
    "This is the {name} at {time}: {image}.",
    "I imagine the {name} as it is at {time}: {image}.",
    "The {name} at {time} looks like this: {image}.",
    "Now the moment {time}, with the {name}: {image}.",
)
MEASUREMENT_PHRASES = (
    "The {name} is {places}.",
    "I read where the {name} is: {places}.",
    "In these pictures the {name} is {places}.",
    "Measured in shares of the picture, the {name} is {places}.",
)
COMPENSATION_PHRASES = (
    "With the camera's own motion taken out:",
    "Leaving aside what the camera does itself:",
    "As it would look if the camera had kept still:",
)
CONCLUSION_PHRASES = (
    "So the answer is: {answer}.",
    "Therefore: {answer}.",
    "This means: {answer}.",
    "From this I conclude: {answer}.",
    "All in all: {answer}.",
)
CAMERA_SIGNS = {  # what each camera motion looks like
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
CAMERA_MOVES_SIGNS = {
    "it moves": ("the view as a whole changes its place", "fixed things do not stay in their places"),
    "it stands still": ("the background keeps its place", "nothing of the background shifts"),
}
ANSWER_SIGNS = CAMERA_MOVES_SIGNS | {  # what each part of the other answers looks like
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
    "to the left": ("it shifts to the left in the picture", "its place gets farther to the left"),
    "to the right": ("it shifts to the right in the picture", "its place gets farther to the right"),
    "up": ("it rises in the picture", "its place gets higher and higher"),
    "down": ("it sinks in the picture", "its place gets lower and lower"),
    "toward the camera": ("it gets larger and comes nearer", "it grows, as what comes closer does"),
    "away from the camera": ("it gets smaller and goes farther", "it shrinks, as what leaves does"),
}


def write_reasoning(question: AnnotatedQuestion, rng: np.random.Generator) -> str:
    """The reasoning of a question, in phrases drawn by `rng`."""

    def draw(phrases: Sequence[str]) -> str:
        return phrases[rng.integers(len(phrases))]

    is_camera = not question.tracks
    names = dict(zip("xy", question.names, strict=False))
    watch = CAMERA_PHRASES if is_camera else OBJECT_PHRASES if len(question.names) == 1 else TWO_OBJECTS_PHRASES
    span = f"from {format_seconds(question.start)} to {format_seconds(question.end)}"
    sentences = [draw(SPAN_PHRASES).format(span=span), draw(watch)]
    phrase = draw(VIEW_PHRASES if is_camera else PICTURE_PHRASES)
    for (track, _), time in zip(question.targets, question.target_times, strict=True):
        name = "" if track is None else question.names[question.tracks.index(track)]
        sentences.append(phrase.format(name=name, time=format_seconds(time), image=OUTPUT_IMAGE))
    if question.camera_compensated:
        sentences.append(draw(COMPENSATION_PHRASES))
    if is_camera and question.measurements:
        sentences.append(draw(SHIFT_PHRASES).format(shifts=_format_shift(*question.measurements[0])))
    phrase = draw(MEASUREMENT_PHRASES)
    for track, name in zip(question.tracks, question.names, strict=True):
        measured = [
            _format_measurement(values)
            for (i, _), values in zip(question.targets, question.measurements, strict=True)
            if i == track
        ]
        sentences.append(phrase.format(name=name, places=", then ".join(measured)))
    conjunction, signs = (" and ", CAMERA_SIGNS) if question.task == "camera_motion" else (", then ", ANSWER_SIGNS)
    seen = conjunction.join(draw(signs[part]) for part in question.answer.split(conjunction))
    sentences += [seen[0].upper() + seen[1:] + ".", draw(CONCLUSION_PHRASES).format(answer=question.answer)]
    return " ".join(sentences).replace("{x}", names.get("x", "")).replace("{y}", names.get("y", ""))


def _format_shift(right: float, down: float, growth: float) -> str:
    """For example "shifts 34% of the picture to the left and 3% up, and grows by 5%"."""
    parts = [
        f"{round(100 * abs(shift))}% {words[shift < 0]}"
        for shift, words in ((right, ("to the right", "to the left")), (down, ("down", "up")))
        if abs(shift) >= 0.01
    ]
    shifts = "shifts " + " and ".join(parts).replace("%", "% of the picture", 1) if parts else ""
    percent = round(100 * (np.exp(growth) - 1))
    grows = f"{'grows' if percent > 0 else 'shrinks'} by {abs(percent)}%" if abs(percent) >= 3 else ""
    return " and ".join(part for part in (shifts, grows) if part) or "stays where it is"


def _format_measurement(measurement: tuple[float, float, float]) -> str:
    x, y, size = (round(100 * value) for value in measurement)
    return f"{x}% across, {y}% down and {size}% large"


def rewrite_reasoning(question: AnnotatedQuestion, text: str, client: VLMClient, seed: int = 0) -> str:
    """The reasoning `text` in the words of a language model.

    Raises `ReasoningError` if none of `MAX_TRIES` replies passes [`check_reasoning`], `VLMError` if the server fails.
    """
    prompt = (
        "Rewrite the reasoning below, about a question on a video clip, in your own words: a person who thinks aloud. "
        "Keep its order: the span, what to go by, the pictures, what is read from them, the conclusion. "
        f"Keep every {OUTPUT_IMAGE} exactly as it is written, {len(question.targets)} in all, each right after the "
        "object and the time that it shows. Keep the times. Add no fact. End with the answer, word for word. "
        "Reply with the reasoning alone.\n\n"
        f"Question: {question.question}\nAnswer: {question.answer}\nReasoning: {text}"
    )
    messages = [{"role": "user", "content": prompt}]
    for attempt in range(MAX_TRIES):
        reply = " ".join(client.complete(messages, temperature=0.8, seed=seed + attempt).split())
        try:
            check_reasoning(question, reply)
            return reply
        except ReasoningError as error:
            reason = str(error)
            messages = [
                messages[0],
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"Not yet: {reason}. Write it again."},
            ]
    raise ReasoningError(f"{client.model} wrote no acceptable reasoning in {MAX_TRIES} tries; of the last, {reason}")


def check_reasoning(question: AnnotatedQuestion, text: str) -> None:
    """Raise `ReasoningError` unless `text` has the question's images, each after its time, and ends in the answer."""
    if len(text) > MAX_LENGTH:
        raise ReasoningError(f"it has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    *before, end = text.split(OUTPUT_IMAGE)
    if len(before) != len(question.targets):
        raise ReasoningError(f"it has {len(before)} {OUTPUT_IMAGE}, it must have {len(question.targets)}")
    if found := re.search(r"</?\w[^>]*>", "".join([*before, end])):
        raise ReasoningError(f"it has a {found[0]}, no tag but {OUTPUT_IMAGE} is allowed")
    for number, (part, time) in enumerate(zip(before, question.target_times, strict=True), start=1):
        if not re.search(rf"(?<![\d.]){re.escape(f'{time:g}')}(?![\d]|\.\d)", part):
            raise ReasoningError(f"the time {format_seconds(time)} is missing before {OUTPUT_IMAGE} number {number}")
    tail = end.rstrip(" .!").lower()
    if not tail.endswith(question.answer.lower()):
        raise ReasoningError(f"it must end with the answer, {question.answer!r}, word for word")
