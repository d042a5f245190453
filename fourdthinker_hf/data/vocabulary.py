"""Words that simulated and annotated questions share: task names, motions, directions, changes, options."""

import itertools
from collections.abc import Sequence

import numpy as np

CAMERA = -1  # where an object's number is expected

# What each camera motion changes, in the units of `CameraMove`: degrees (yaw left, pitch up, roll to the left) or m.
CAMERA_MOTIONS = {
    "pan left": ("yaw", 1),
    "pan right": ("yaw", -1),
    "tilt up": ("pitch", 1),
    "tilt down": ("pitch", -1),
    "roll left": ("roll", 1),
    "roll right": ("roll", -1),
    "dolly in": ("ahead", 1),
    "dolly out": ("ahead", -1),
    "truck left": ("aside", -1),
    "truck right": ("aside", 1),
    "pedestal up": ("lift", 1),
    "pedestal down": ("lift", -1),
    "orbit left": ("orbit", -1),
    "orbit right": ("orbit", 1),
}

STATIC = "static"


DIRECTIONS = {"to the left": 180.0, "to the right": 0.0, "toward the camera": -90.0, "away from the camera": 90.0}


PAIRS = (
    ("pan left", "tilt up"),
    ("pan right", "tilt down"),
    ("pan left", "dolly in"),
    ("pan right", "dolly out"),
    ("truck left", "pan right"),
    ("truck right", "pan left"),
    ("tilt down", "pedestal up"),
    ("tilt up", "pedestal down"),
    ("dolly in", "roll left"),
    ("dolly out", "roll right"),
    ("orbit left", "pedestal up"),
    ("orbit right", "dolly in"),
)


KINDS = ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")

TEMPLATES = tuple(f"{view}_{kind}" for view in ("abs", "rel") for kind in KINDS)

NON_TEMP = "non_temp"

DSR_TASKS = (*TEMPLATES, NON_TEMP)

WORDS = {  # up, down, still
    "dis": ("grows", "shrinks", "stays the same"),
    "spd": ("speeds up", "slows down", "keeps its speed"),
    "ori": ("turns left", "turns right", "keeps its heading"),
    "spd_comp": ("the first is faster", "the second is faster", "both are equally fast"),
}


def option_text(path: Sequence[str]) -> str:
    return ", then ".join(path)


def with_distractors(rng: np.random.Generator, right: str, others: Sequence[str], letter: int) -> list[str]:
    """Four options with the right one at place `letter` and three of `others`, any as likely as any other."""
    wrong = rng.permutation(sorted(set(others) - {right}))[:3].tolist()
    return [*wrong[:letter], right, *wrong[letter:]]


def sequences(words: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Every sequence of one to `most` of `words` in which no word follows itself."""
    every = (path for num in range(1, most + 1) for path in itertools.product(words, repeat=num))
    return [path for path in every if all(a != b for a, b in itertools.pairwise(path))]


def seconds(time: float) -> str:
    return f"{time:g} s"
