"""The questions of DSR-Sim's 12 template tasks: their wording, and their answers and reasoning from the truth.

A task is named `abs_KIND` or `rel_KIND`, as in DSR-Bench. An `abs` task looks from where the agent (the camera, or a
body with a front) is at one moment; a `rel` task looks from the agent as it moves. The agent's axes are level: its
front is where it faces, and above is straight up. An answer is a sequence of runs over the span that is asked about,
such as "grows, then stays the same". Where a value is near a threshold, the question has no answer:

| kind | value | a run of it | ambiguous |
| --- | --- | --- | --- |
| dis | log of the distance | it changes by 25% or more, or stays within 8% | changes of 8% to 25% |
| spd | log of the speed, at least 0.1 m/s | it changes by 50% or more, or stays within 12% | 12% to 50% |
| ori | heading in degrees, to the left | it changes by 25 or more, or stays within 8 | 8 to 25 |
| spd_comp | ratio of speeds, at least 0.1 m/s | 1.5 or more, and 0.3 m/s; at most 1.15, or both rest | 1.15 to 1.5 |
| dir, dir_pred | components of the unit vector | named above 0.3, not named below 0.2 | 0.2 to 0.3 |

`value_changes.py` says how long a run lasts and how many frames of a span may be ambiguous. The direction that
dir_pred asks for must be the same in the last second of the clip and in the second after it, and the object must
travel 0.3 m or more in each. An object that stays in place travels at most 0.03 m in each.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..question_vocabulary import CHANGE_WORDS, all_sequences, format_seconds, sequence_text
from ..value_changes import FASTER_RATIO, find_changes, find_runs
from .rendering import FPS, Truth
from .scenes import CAMERA

SPEED_FLOOR = 0.1  # m/s: slower speeds count as this one when speeds are compared
SAME_RATIO = 1.15  # two speeds whose ratio is at most this are equal
BOTH_REST, FASTER_SPEED = 0.05, 0.3  # m/s: two slower objects are equally fast; the faster of two has at least this
LARGE_COMPONENT, SMALL_COMPONENT = 0.3, 0.2  # of a unit vector
MIN_TRAVEL, MAX_REST = 0.3, 0.03  # m in a second, for dir_pred
LONG_SPAN = 8.0  # s: at level 3, answers over spans as long as this may have three runs

PLACE_WORDS = (("front", "behind"), ("left", "right"), ("above", "below"))
MOVE_WORDS = (("forward", "backward"), ("left", "right"), ("up", "down"))
STAYS = "it stays in place"
# Directions in steps of 45 degrees counter-clockwise, the first straight ahead.
PLACES_AROUND = ("front", "front left", "left", "behind left", "behind", "behind right", "right", "front right")
MOVES_AROUND = (
    "forward",
    "forward left",
    "left",
    "backward left",
    "backward",
    "backward right",
    "right",
    "forward right",
)


@dataclass(frozen=True)
class QuestionSpec:
    """What a question asks about. Objects are given by index, or as `CAMERA`; times are in seconds."""

    task: str
    agent: int
    subject: int
    other: int | None  # the second object, where the question has two
    view_time: float  # when an `abs` task looks
    start: float  # of the span
    end: float  # of the span; for dir_pred, the end of the clip

    @property
    def kind(self) -> str:
        return self.task[4:]

    @property
    def relative(self) -> bool:
        """Whether the question looks from the agent as it moves."""
        return self.task.startswith("rel")

    @property
    def asked_objects(self) -> tuple[int, ...]:
        """The objects that have to be visible during the span."""
        return tuple(i for i in (self.subject, self.other) if i is not None and i != CAMERA)

    @property
    def span(self) -> slice:
        """The span's frames."""
        return slice(round(self.start * FPS), round(self.end * FPS) + 1)


# Wording


def question_text(spec: QuestionSpec, names: Sequence[str]) -> str:
    """The question, given the names of the scene's objects."""

    def name(i: int) -> str:
        return "the camera" if i == CAMERA else f"the {names[i]}"

    agent, subject, other = name(spec.agent), name(spec.subject), name(spec.other or 0)
    moment = format_seconds(spec.view_time)
    view = f"Seen from {agent} as it moves" if spec.relative else f"Seen from where {agent} is at {moment}"
    span = f"from {format_seconds(spec.start)} to {format_seconds(spec.end)}"
    if spec.kind == "dis" and spec.other is not None:
        return f"How does the distance between {subject} and {other} change {span}?"
    return {
        "dis": f"{view}, how does the distance to {subject} change {span}?",
        "dir": f"{view}, in which direction is {subject} {span}?",
        "ori": f"{view}, how does {subject} turn {span}?",
        "spd": f"{view}, how does the speed of {subject} change {span}?",
        "spd_comp": f"{view}, which is faster {span}: first, {subject}, or second, {other}?",
        "dir_pred": f"{view}, in which direction will {subject} move after the clip ends?",
    }[spec.kind]


def possible_answers(spec: QuestionSpec, level: int) -> list[tuple[str, ...]]:
    """Every answer that a question may have at a level. Each is the right one equally often."""
    if spec.kind == "dir_pred":
        # Only a camera that sinks or rises sees an object move up or down.
        vertical = ("up", "down") if spec.relative and spec.agent == CAMERA else ()
        return [(words,) for words in (*MOVES_AROUND, *vertical, STAYS)]
    if spec.kind == "dir":
        if spec.agent != CAMERA:
            pairs = [(PLACES_AROUND[k], PLACES_AROUND[(k + step) % 8]) for k in range(8) for step in (1, -1)]
            return [*((words,) for words in PLACES_AROUND), *pairs]
        below = [("front left below", "front below", "front right below")]
        rows = below if level == 1 else [*below, ("front left", "front", "front right")]
        neighbours = [pair for row in rows for a, b in itertools.pairwise(row) for pair in ((a, b), (b, a))]
        # At level 1 the field of view is too narrow to cross from one side to the other.
        crossings = [sequence for row in rows for sequence in (row, row[::-1])] if level > 1 else []
        return [*((words,) for row in rows for words in row), *neighbours, *crossings]
    max_runs = 3 if level == 3 and spec.end - spec.start >= LONG_SPAN else 2
    return all_sequences(CHANGE_WORDS[spec.kind], max_runs)


# Measurements, at every frame of the truth


def position(truth: Truth, i: int) -> np.ndarray:
    """World position of object i or the camera in m; (T, 3)."""
    return truth.camera_positions if i == CAMERA else truth.positions[:, i]


def heading(truth: Truth, i: int) -> np.ndarray:
    """Where object i or the camera faces in the horizontal plane, in rad from the world's +x, unwrapped; (T,)."""
    if i == CAMERA:
        x, y = -truth.camera_rotations[:, 0, 2], -truth.camera_rotations[:, 1, 2]
    else:
        w, a, b, c = truth.quaternions[:, i].T
        x, y = 1 - 2 * (b * b + c * c), 2 * (a * b + w * c)
    return np.unwrap(np.arctan2(y, x))


def position_from_agent(truth: Truth, spec: QuestionSpec, i: int) -> np.ndarray:
    """Position of object i in the agent's axes (front, left, up) in m; (T, 3).

    The axes are those at `spec.view_time` in an `abs` task, and those of each frame in a `rel` task.
    """
    origin, yaw = position(truth, spec.agent), heading(truth, spec.agent)
    if not spec.relative:
        frame = round(spec.view_time * FPS)
        origin, yaw = origin[frame : frame + 1], yaw[frame : frame + 1]
    offset, cos, sin = position(truth, i) - origin, np.cos(yaw), np.sin(yaw)
    x, y, z = offset.T
    return np.stack([cos * x + sin * y, cos * y - sin * x, z], -1)


def distance(truth: Truth, spec: QuestionSpec) -> np.ndarray:
    """Distance in m from the subject to the other object, or to the agent if there is none; (T,)."""
    if spec.other is None:
        return np.linalg.norm(position_from_agent(truth, spec, spec.subject), axis=-1)
    return np.linalg.norm(position(truth, spec.subject) - position(truth, spec.other), axis=-1)


def speed(truth: Truth, spec: QuestionSpec, i: int) -> np.ndarray:
    """Speed of object i in the agent's axes in m/s; (T,)."""
    return np.linalg.norm(np.gradient(position_from_agent(truth, spec, i), axis=0), axis=-1) * FPS


def turned_angle(truth: Truth, spec: QuestionSpec) -> np.ndarray:
    """Degrees by which the subject has turned to its left since the first frame, in the agent's axes; (T,)."""
    yaw = heading(truth, spec.subject) - (heading(truth, spec.agent) if spec.relative else 0)
    return np.degrees(yaw - yaw[0])


# Answers


def direction_words(vector: np.ndarray, words: tuple[tuple[str, str], ...] = PLACE_WORDS) -> str | None:
    """The words for the large components of a vector (front, left, up); None if any is near the threshold."""
    length = np.linalg.norm(vector)
    components = (vector / max(length, 1e-9)).tolist()
    if any(SMALL_COMPONENT < abs(component) < LARGE_COMPONENT for component in components):
        return None
    named = [
        pair[component < 0]
        for component, pair in zip(components, words, strict=True)
        if abs(component) >= LARGE_COMPONENT
    ]
    return " ".join(named) or None


def find_answer(truth: Truth, spec: QuestionSpec) -> tuple[str, ...] | None:
    """The runs that answer a question, or None if the answer is ambiguous."""
    if spec.kind == "dis":
        return find_changes(np.log(np.maximum(distance(truth, spec)[spec.span], 1e-3)), "dis")
    if spec.kind == "ori":
        return find_changes(turned_angle(truth, spec)[spec.span], "ori")
    if spec.kind == "spd":
        return find_changes(np.log(np.maximum(speed(truth, spec, spec.subject)[spec.span], SPEED_FLOOR)), "spd")
    if spec.kind == "dir":
        return find_runs(list(map(direction_words, position_from_agent(truth, spec, spec.subject)[spec.span])))
    if spec.kind == "spd_comp":
        speeds = (speed(truth, spec, i)[spec.span].tolist() for i in (spec.subject, spec.other))
        return find_runs(list(map(_faster_words, *speeds)))
    return _predicted_direction(truth, spec)


def _faster_words(first_speed: float, second_speed: float) -> str | None:
    first, second, same = CHANGE_WORDS["spd_comp"]
    slower, faster = sorted((first_speed, second_speed))
    ratio = max(first_speed, SPEED_FLOOR) / max(second_speed, SPEED_FLOOR)
    if faster < BOTH_REST or (slower >= 2 * SPEED_FLOOR and 1 / SAME_RATIO <= ratio <= SAME_RATIO):
        return same
    if faster < FASTER_SPEED or 1 / FASTER_RATIO < ratio < FASTER_RATIO:
        return None
    return first if ratio > 1 else second


def _predicted_direction(truth: Truth, spec: QuestionSpec) -> tuple[str, ...] | None:
    now = round(spec.end * FPS)
    path = position_from_agent(truth, spec, spec.subject)
    before, after = path[now] - path[now - FPS], path[min(now + FPS, len(path) - 1)] - path[now]
    lengths = np.linalg.norm(before), np.linalg.norm(after)
    if max(lengths) <= MAX_REST:
        return (STAYS,)
    words = direction_words(after, MOVE_WORDS)
    return (words,) if words and min(lengths) >= MIN_TRAVEL and words == direction_words(before, MOVE_WORDS) else None


# Reasoning


def reasoning_text(
    truth: Truth, spec: QuestionSpec, names: Sequence[str], answer: Sequence[str], targets: Sequence[tuple[int, int]]
) -> str:
    """The reasoning: the span, a mental image for each (object, frame) of `targets`, measurements, and the answer."""
    span = f"from {format_seconds(spec.start)} to {format_seconds(spec.end)}."
    images = " ".join(f"{names[i]} at {format_seconds(frame / FPS)} <output_image>." for i, frame in targets)
    conclusion = sequence_text(answer)
    if spec.kind == "dir_pred":
        span = "at the end of the clip."
        conclusion = conclusion if answer[0] == STAYS else f"it moves {answer[0]}"
    return f"{span} {images} {_measurements_text(truth, spec)}. {conclusion}."


def _measurements_text(truth: Truth, spec: QuestionSpec) -> str:
    """What is measured at five moments of the span, in few words."""
    span = spec.span
    frames = np.linspace(span.start, span.stop - 1, 5).round().astype(int)
    if spec.kind == "dis":
        return "distance " + ", ".join(f"{value:.1f}" for value in distance(truth, spec)[frames])
    if spec.kind == "ori":
        angles = turned_angle(truth, spec)[frames]
        return "turned " + ", ".join(f"{angle:.0f}" for angle in angles - angles[0])
    if spec.kind in ("spd", "spd_comp"):
        speeds = [speed(truth, spec, i)[frames] for i in (spec.subject, spec.other) if i is not None]
        return " and ".join("speed " + ", ".join(f"{value:.1f}" for value in values) for values in speeds)
    path = position_from_agent(truth, spec, spec.subject)
    if spec.kind == "dir":
        return "direction " + ", ".join(direction_words(path[frame]) or "in between" for frame in frames)
    now = round(spec.end * FPS)
    return f"in the last second it moves {np.linalg.norm(path[now] - path[now - FPS]):.1f} m"
