"""Words that simulated and annotated questions share: task names, camera motions, directions, changes and options."""

import itertools
from collections.abc import Sequence

import numpy as np

STATIC_CAMERA = "static"

# Each named camera motion, with the simulator's quantity that it changes and the sign of the change. Angles are in
# degrees (yaw to the left, pitch upward, roll to the left, orbit to the right); ahead, aside and lift are in m.
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

# The pairs of motions at the same time that questions ask about, in the order in which an answer names them.
CAMERA_MOTION_PAIRS = (
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

# Directions in which an object moves over the ground, in degrees counter-clockwise from the camera's right.
OBJECT_DIRECTIONS = {
    "to the left": 180.0,
    "to the right": 0.0,
    "toward the camera": -90.0,
    "away from the camera": 90.0,
}

# The 13 task names of DSR-Bench. "abs" is seen from where the viewer is at one moment, "rel" from the viewer as it
# moves. The questions are about a distance, direction, orientation, speed, which of two speeds is higher, or the
# direction that comes next.
TEMPLATE_KINDS = ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
TEMPLATE_TASKS = tuple(f"{view}_{kind}" for view in ("abs", "rel") for kind in TEMPLATE_KINDS)
NON_TEMPLATE_TASK = "non_temp"
DSR_TASKS = (*TEMPLATE_TASKS, NON_TEMPLATE_TASK)

# For each kind of measured value, what is said when it rises, when it falls, and when it stays the same.
CHANGE_WORDS = {
    "dis": ("grows", "shrinks", "stays the same"),
    "spd": ("speeds up", "slows down", "keeps its speed"),
    "ori": ("turns left", "turns right", "keeps its heading"),
    "spd_comp": ("the first is faster", "the second is faster", "both are equally fast"),
}


def sequence_text(sequence: Sequence[str]) -> str:
    """The option that says one thing after another: "grows, then shrinks"."""
    return ", then ".join(sequence)


def all_sequences(words: Sequence[str], max_length: int) -> list[tuple[str, ...]]:
    """Every sequence of one to `max_length` of `words` in which no word follows itself."""
    every = itertools.chain(*(itertools.product(words, repeat=num) for num in range(1, max_length + 1)))
    return [sequence for sequence in every if all(a != b for a, b in itertools.pairwise(sequence))]


def with_distractors(rng: np.random.Generator, right: str, others: Sequence[str], position: int) -> list[str]:
    """Four options: `right` at index `position`, and three of `others`, each drawn with the same probability."""
    wrong = rng.permutation(sorted(set(others) - {right}))[:3].tolist()
    return [*wrong[:position], right, *wrong[position:]]


def format_seconds(time: float) -> str:
    return f"{time:g} s"
