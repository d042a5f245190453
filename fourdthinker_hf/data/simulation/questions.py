"""DSR-Sim's template questions: DSR-Bench's 12 sub-tasks that have a template, answered from the simulator's state.

`abs` tasks look from the AGENT (the camera, or a body with a front) as it stands at one moment; `rel` tasks from the
agent at every moment. An agent's axes are level: front is where it faces, above is straight up. An answer is a list of
runs over the asked span, "grows, then stays the same"; one that is near a threshold is no answer (`answer` is None).

| kind | what | a run of it | refused in between |
| --- | --- | --- | --- |
| dis | log of the distance | changes by 25% or more; stays within 8% | changes of 8% to 25% |
| spd | log of the speed, floor 0.1 m/s | by 50% or more; within 12% | 12% to 50% |
| ori | heading in degrees, to its left | by 25 or more; within 8 | 8 to 25 |
| spd_comp | ratio of speeds, floor 0.1 m/s | 1.5 or more, at 0.3 m/s; 1.15 or less, or both rest | 1.15 to 1.5 |
| dir, dir_pred | parts of the unit vector along the axes | above 0.3; below 0.2 | 0.2 to 0.3 |

A run lasts 15% of the span or more; frames that are unclear are 35% of it or fewer, and 15% or fewer in a row at its
ends. A prediction must be what the second before says too, and travels 0.3 m or more in the second after (at most 0.03
for what stays in place).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..changes import FASTER_RATIO, SAME_RATIO, SLOWEST, find_changes, find_runs
from ..vocabulary import CHANGE_WORDS, all_sequences, format_seconds, sequence_text
from .rendering import FPS, Truth
from .scenes import CAMERA

AT_REST, VISIBLY = 0.05, 0.3  # m/s: two that rest are equally fast; a faster one has this speed
PART, NO_PART = 0.3, 0.2
TRAVEL, REST = 0.3, 0.03  # m in a second
LONG = 8.0  # s: spans as long as this may have three runs, at level 3

SIDES = (("front", "behind"), ("left", "right"), ("above", "below"))
WAYS = (("forward", "backward"), ("left", "right"), ("up", "down"))
STAYS = "it stays in place"
RING = (
    "front",
    "front left",
    "left",
    "behind left",
    "behind",
    "behind right",
    "right",
    "front right",
)  # by 45 degrees
WAY_RING = ("forward", "forward left", "left", "backward left", "backward", "backward right", "right", "forward right")


@dataclass(frozen=True)
class Ask:
    """What is asked, objects by number or `CAMERA`; `y` is the other object if there is one; times in seconds.

    `at` is when an `abs` task looks; for dir_pred `end` is the end of the clip.
    """

    task: str
    agent: int
    x: int
    y: int | None
    at: float
    start: float
    end: float

    @property
    def kind(self) -> str:
        return self.task[4:]

    @property
    def follows(self) -> bool:
        return self.task.startswith("rel")

    @property
    def asked(self) -> tuple[int, ...]:
        """The objects that have to be seen during the span."""
        return tuple(i for i in (self.x, self.y) if i is not None and i != CAMERA)

    @property
    def span(self) -> slice:
        return slice(round(self.start * FPS), round(self.end * FPS) + 1)


# What is measured, at every frame of the truth


def place(truth: Truth, i: int) -> np.ndarray:
    """(T, 3) m."""
    return truth.camera_positions if i == CAMERA else truth.positions[:, i]


def heading(truth: Truth, i: int) -> np.ndarray:
    """Where object i or the camera faces, level, in rad from the world's +x, unwrapped; (T,)."""
    if i == CAMERA:
        x, y = -truth.camera_rotations[:, 0, 2], -truth.camera_rotations[:, 1, 2]
    else:
        w, a, b, c = truth.quaternions[:, i].T
        x, y = 1 - 2 * (b * b + c * c), 2 * (a * b + w * c)
    return np.unwrap(np.arctan2(y, x))


def seen_from(truth: Truth, ask: Ask, i: int) -> np.ndarray:
    """Object i in the agent's axes (front, left, up) in m, (T, 3): as it stands at `ask.at`, or at each moment."""
    origin, yaw = place(truth, ask.agent), heading(truth, ask.agent)
    if not ask.follows:
        moment = round(ask.at * FPS)
        origin, yaw = origin[moment : moment + 1], yaw[moment : moment + 1]
    away, cos, sin = place(truth, i) - origin, np.cos(yaw), np.sin(yaw)
    return np.stack([cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0], away[:, 2]], -1)


def distance(truth: Truth, ask: Ask) -> np.ndarray:
    away = seen_from(truth, ask, ask.x) if ask.y is None else place(truth, ask.x) - place(truth, ask.y)
    return np.linalg.norm(away, axis=-1)


def speed(truth: Truth, ask: Ask, i: int) -> np.ndarray:
    """m/s of object i in the agent's axes; (T,)."""
    return np.linalg.norm(np.gradient(seen_from(truth, ask, i), axis=0), axis=-1) * FPS


def turned(truth: Truth, ask: Ask) -> np.ndarray:
    """Degrees that x has turned to its left, as the agent sees it; (T,)."""
    yaw = heading(truth, ask.x) - (heading(truth, ask.agent) if ask.follows else 0)
    return np.degrees(yaw - yaw[0])


# From measures to runs


def side(vector: np.ndarray, words: tuple[tuple[str, str], ...] = SIDES) -> str | None:
    """The words for the large parts of a vector (front, left, up); None if any part is near the threshold."""
    length = np.linalg.norm(vector)
    parts = (vector / max(length, 1e-9)).tolist()
    if any(NO_PART < abs(part) < PART for part in parts):
        return None
    return " ".join(pair[part < 0] for part, pair in zip(parts, words, strict=True) if abs(part) >= PART) or None


def _predicted(truth: Truth, ask: Ask) -> tuple[str, ...] | None:
    now = round(ask.end * FPS)
    path = seen_from(truth, ask, ask.x)
    before, after = path[now] - path[now - FPS], path[min(now + FPS, len(path) - 1)] - path[now]
    lengths = np.linalg.norm(before), np.linalg.norm(after)
    if max(lengths) <= REST:
        return (STAYS,)
    label = side(after, WAYS)
    return (label,) if label and min(lengths) >= TRAVEL and label == side(before, WAYS) else None


def answer(truth: Truth, ask: Ask) -> tuple[str, ...] | None:
    """The runs that answer `ask`, or None where that is ambiguous."""
    if ask.kind == "dis":
        return find_changes(np.log(np.maximum(distance(truth, ask)[ask.span], 1e-3)), "dis")
    if ask.kind == "ori":
        return find_changes(turned(truth, ask)[ask.span], "ori")
    if ask.kind == "spd":
        return find_changes(np.log(np.maximum(speed(truth, ask, ask.x)[ask.span], SLOWEST)), "spd")
    if ask.kind == "dir":
        return find_runs([side(vector) for vector in seen_from(truth, ask, ask.x)[ask.span]])
    if ask.kind == "spd_comp":
        speeds = (speed(truth, ask, i)[ask.span].tolist() for i in (ask.x, ask.y))
        return find_runs(list(map(_faster, *speeds)))
    return _predicted(truth, ask)


def _faster(one: float, two: float) -> str | None:
    first, second, same = CHANGE_WORDS["spd_comp"]
    ratio = max(one, SLOWEST) / max(two, SLOWEST)
    if max(one, two) < AT_REST or (min(one, two) >= 2 * SLOWEST and 1 / SAME_RATIO <= ratio <= SAME_RATIO):
        return same
    if max(one, two) < VISIBLY or 1 / FASTER_RATIO < ratio < FASTER_RATIO:
        return None
    return first if ratio > 1 else second


# The answers there can be, and the options


def classes(ask: Ask, level: int) -> list[tuple[str, ...]]:
    """Every answer that a question of this wording may have at a level; each is made equally often."""
    if ask.kind == "dir_pred":
        lifted = ("up", "down") if ask.follows and ask.agent == CAMERA else ()  # by a camera that sinks or rises
        return [(label,) for label in (*WAY_RING, *lifted, STAYS)]
    if ask.kind == "dir":
        if ask.agent != CAMERA:
            pairs = [(RING[k], RING[(k + step) % 8]) for k in range(8) for step in (1, -1)]
            return [*((label,) for label in RING), *pairs]
        below = [("front left below", "front below", "front right below")]
        rows = below if level == 1 else [*below, ("front left", "front", "front right")]
        near = [pair for row in rows for a, b in itertools.pairwise(row) for pair in ((a, b), (b, a))]
        across = [path for row in rows for path in (row, row[::-1])] if level > 1 else []  # too wide for that view
        return [*((label,) for row in rows for label in row), *near, *across]
    words, most = CHANGE_WORDS[ask.kind], 3 if level == 3 and ask.end - ask.start >= LONG else 2
    return all_sequences(words, most)


# Words


def wording(ask: Ask, names: Sequence[str]) -> str:
    """The question; `names` of the objects."""

    def name(i: int) -> str:
        return "the camera" if i == CAMERA else f"the {names[i]}"

    view = (
        f"from {name(ask.agent)} as it moves"
        if ask.follows
        else f"from where {name(ask.agent)} is at {format_seconds(ask.at)}"
    )
    span, x = f"from {format_seconds(ask.start)} to {format_seconds(ask.end)}", name(ask.x)
    return {
        "dis": f"How does the distance between {x} and {name(ask.y)} change {span}?"
        if ask.y is not None
        else f"Seen {view}, how does the distance to {x} change {span}?",
        "dir": f"Seen {view}, in which direction is {x} {span}?",
        "ori": f"Seen {view}, how does {x} turn {span}?",
        "spd": f"Seen {view}, how does the speed of {x} change {span}?",
        "spd_comp": f"Seen {view}, which is faster {span}: first, {x}, or second, {name(ask.y or 0)}?",
        "dir_pred": f"Seen {view}, in which direction will {x} move after the clip ends?",
    }[ask.kind]


def readings(truth: Truth, ask: Ask) -> str:
    """What the measure reads at five moments of the span, in words short enough for a small model."""
    span = ask.span
    frames = np.linspace(span.start, span.stop - 1, 5).round().astype(int)
    if ask.kind == "dis":
        return "distance " + ", ".join(f"{value:.1f}" for value in distance(truth, ask)[frames])
    if ask.kind == "ori":
        return "turned " + ", ".join(
            f"{value:.0f}" for value in turned(truth, ask)[frames] - turned(truth, ask)[frames[0]]
        )
    if ask.kind in ("spd", "spd_comp"):
        both = [speed(truth, ask, i)[frames] for i in (ask.x, ask.y) if i is not None]
        return " and ".join("speed " + ", ".join(f"{value:.1f}" for value in values) for values in both)
    path = seen_from(truth, ask, ask.x)
    if ask.kind == "dir":
        return "direction " + ", ".join(side(path[k]) or "in between" for k in frames)
    now = round(ask.end * FPS)
    return f"in the last second it moves {np.linalg.norm(path[now] - path[now - FPS]):.1f} m"


def reasoning(
    truth: Truth, ask: Ask, names: Sequence[str], path: Sequence[str], targets: Sequence[tuple[int, int]]
) -> str:
    """Locate the span, picture what is asked about at its moments, read the measure, conclude."""
    begin = (
        f"from {format_seconds(ask.start)} to {format_seconds(ask.end)}."
        if ask.kind != "dir_pred"
        else "at the end of the clip."
    )
    looks = " ".join(f"{names[i]} at {format_seconds(frame / FPS)} <output_image>." for i, frame in targets)
    end = f"it moves {path[0]}" if ask.kind == "dir_pred" and path[0] != STAYS else sequence_text(path)
    return f"{begin} {looks} {readings(truth, ask)}. {end}."
