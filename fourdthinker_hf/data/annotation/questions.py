"""Questions about a real shot, answered from its pixels: camera motion, masks over time, and nothing else.

| task | what is asked, of a span of the shot | how its answer is read |
| --- | --- | --- |
| camera_motion | how does the camera move | `Camera`'s own span, if it is sure |
| object_direction | to which side, toward or away from the camera an object moves | its path |
| distance_change | how the distance between the camera and an object changes | its size in the picture |
| speed_change | how the speed of an object changes | its path |
| faster_object | which of two objects is faster | two paths |
| spatial_description | on which side of another object an object is | the two centres |

A path is known up to its scale: an object's depth is taken to go as one over its size in the picture, once the
background's motion is taken out of both. What pixels do not tell (the focal length, how large one object is beside
another, which measure of a mask is its size) is tried over a range, and so is noise, by thresholds both stricter and
laxer than those of `questions.py`. **A question is asked only if every trial gives the same answer.** The runs of an
answer, and its words, are those of `questions.py`.

In the simulated benchmark the answer is drawn first, so that a question's text tells nothing of it. Here it cannot be:
`add_options` sees to it afterwards, over the whole data set.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..changes import FASTER_RATIO, find_changes, find_runs
from ..vocabulary import (
    CAMERA_MOTION_PAIRS,
    CAMERA_MOTIONS,
    CHANGE_WORDS,
    OBJECT_DIRECTIONS,
    STATIC_CAMERA,
    all_sequences,
    format_seconds,
    sequence_text,
)
from .camera import Camera, CameraSpan
from .measurement import MARGIN, WINDOW, Path, Scene
from .shots import Shot
from .tracking import Track

# Confidences below which nothing is asked: of a track, of a camera whose motion is taken out, of one that is asked
# about. On 90 clips of a development seed 61 of 62 single motions above ASKED were right, but 5 of 10 pairs: those
# need a surer camera than `estimate_camera` is.
ASKED, PAIR = 0.7, 0.98
SHORTEST = 1.5  # s of a span
FEWEST = 6  # frames of a span
LONG = 5 * WINDOW  # s of a span in which a sudden change of speed is not taken for a slow one
GAP, PASSING = 3, 16  # frames in a row that may lack a whole mask; the same while one thing passes another
OFF, GROWN = 0.03, 0.2  # of the longer side, and of log size: so far a landmark may be off what the camera does to it
SCALES = (0.45, 1.0, 2.2)  # tried: the other object's scale beside the first's
STRICT = (0.75, 1.3)  # of every change: as if it were smaller, and as if it were larger
STRAIGHT, MOVED = 22.0, 0.06  # degrees off an axis at most; m per m of depth
SLOWEST, FAST = (0.01, 0.03), 0.04  # m/s per m of depth: floors of a speed; what a faster object has
APART = (0.02, 0.06)  # of the width: what is beside something
STEADIED = ("object_direction", "speed_change", "faster_object")
SIDES = ("left", "right")

ANSWERS = {
    "camera_motion": tuple(
        " and ".join(names)
        for names in [(STATIC_CAMERA,), *((name,) for name in CAMERA_MOTIONS), *CAMERA_MOTION_PAIRS]
        if not any(name.startswith("orbit") for name in names)  # to the eye, truck one way and pan the other
    ),
    "object_direction": tuple(OBJECT_DIRECTIONS),
    "distance_change": tuple(sequence_text(path) for path in all_sequences(CHANGE_WORDS["dis"], 2)),
    "speed_change": CHANGE_WORDS["spd"],  # throughout: what is smooth cannot tell a sudden change from a slow one
    **{
        task: tuple(sequence_text(path) for path in ((a,), (b,), (a, b), (b, a)))
        for task, (a, b) in (("faster_object", CHANGE_WORDS["spd_comp"][:2]), ("spatial_description", SIDES))
    },
}
TASKS = tuple(ANSWERS)


@dataclass(frozen=True)
class Asked:
    """A question and its evidence; times in s since the shot's first frame.

    `looks` are (track, frame) to picture, in the order of the reasoning, at `times`; `places` what is read there: x, y
    and size of the object, shares of the picture's width, height and longer side. Where `steadied`, the camera's
    motion has been taken out of them. `tracks` are those asked about, or the camera's reference, and `names` theirs.
    """

    task: str
    question: str
    answer: str
    start: float
    end: float
    looks: tuple[tuple[int, int], ...]
    times: tuple[float, ...]
    places: tuple[tuple[float, float, float], ...]
    tracks: tuple[int, ...]
    names: tuple[str, ...]
    steadied: bool


def ask(shot: Shot, camera: Camera, tracks: Sequence[Track]) -> tuple[list[Asked], Counter]:
    """The questions that a shot answers surely, and how often which task was refused, by reason."""
    seen, refused = Scene.of(shot, camera, tracks), Counter()
    asked = []
    for task, write, who in _candidates(seen):
        found = write(seen, *who)
        if isinstance(found, Asked):
            asked.append(found)
        else:
            refused[f"{task}: {found}"] += 1
    return asked, refused


def _long(scene: Scene, frames: slice) -> bool:
    count = frames.stop - frames.start
    return count >= FEWEST and scene.times[frames.stop - 1] - scene.times[frames.start] >= SHORTEST - 1e-6


def _spans(scene: Scene, shown: np.ndarray, pieces: np.ndarray, gap: int) -> list[slice]:
    """Frames to ask about: the longest run of those `shown` (T,) bool of one of the `pieces` (n, T), then its first
    and its last two thirds."""
    best, begin, last = slice(0, 0), 0, -gap - 1
    for t in np.flatnonzero(shown).tolist():
        if t - last > gap or (pieces[:, t] != pieces[:, last]).any():
            begin = t
        last = t
        best = max(best, slice(begin, t + 1), key=lambda run: run.stop - run.start)
    third = (best.stop - best.start) // 3
    parts = [best, slice(best.start, best.stop - third), slice(best.start + third, best.stop)]
    return [part for part in parts if _long(scene, part)]


def _agreed(answers: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The answer of all trials, if it is the same."""
    found = None
    for answer in answers:
        if answer is None or (found is not None and answer != found):
            return None
        found = answer
    return found


# Which questions, and what each reads


def _candidates(scene: Scene) -> Iterator[tuple[str, Callable, tuple]]:
    movers = [i for i, path in scene.paths.items() if path.moving]
    for span in scene.spans:
        yield "camera_motion", _camera, (span,)
    for i in movers:
        yield "object_direction", _direction, (i,)
        yield "speed_change", _speed, (i,)
    rests = all(span.motions == (STATIC_CAMERA,) for span in scene.spans)
    for i in movers if rests else scene.paths:  # between what rests and what rests nothing changes
        yield "distance_change", _distance, (i,)
    for i, j in itertools.combinations(scene.paths, 2):
        if scene.touching[i, j].mean() > 0.5 or not (i in movers or j in movers):
            continue  # what always touches may be a part of the other: a wheel and its car
        one, other = (i, j) if i in movers else (j, i)
        yield "spatial_description", _side, (one, other)
        if other in movers:
            yield "faster_object", _faster, (one, other)


def _camera(scene: Scene, span: CameraSpan) -> Asked | str:
    if span.confidence < (PAIR if len(span.motions) > 1 else ASKED):
        return "unsure"
    inner = scene.times - span.start >= MARGIN * (span.start > scene.times[0] + MARGIN)
    inner &= span.end - scene.times >= MARGIN * (span.end < scene.times[-1] - MARGIN)
    frames = slice(int(inner.argmax()), len(inner) - int(inner[::-1].argmax())) if inner.any() else slice(0, 0)
    if not _long(scene, frames):
        return "too short"
    rests = {i: path for i, path in scene.paths.items() if not path.moving}
    shown = {i: np.flatnonzero(path.seen[frames]) + frames.start for i, path in rests.items()}
    shown = {i: moments for i, moments in shown.items() if len(moments) > 1}
    if not shown:
        return "no landmark to tell it by"
    best = max(shown, key=lambda i: shown[i][-1] - shown[i][0])  # longest in sight
    names = next((pair for pair in CAMERA_MOTION_PAIRS if set(pair) == set(span.motions)), span.motions)
    looks = [(best, int(frame)) for frame in shown[best][[0, -1]]]
    if not _agrees(scene, scene.paths[best], slice(looks[0][1], looks[1][1] + 1)):
        return "its landmark says otherwise"
    return _asked(
        scene, "camera_motion", "How does the camera move {span}?", " and ".join(names), frames, (best,), looks
    )


def _agrees(scene: Scene, landmark: Path, frames: slice) -> bool:
    """Whether a landmark stays where it is once the camera's motion is taken out, or nearly: it may stand out of what
    the homographies describe."""
    centres, sizes = scene.steady(landmark, frames)
    seen = np.linalg.norm(np.subtract(*landmark.centres[[frames.start, frames.stop - 1]]))
    off, grown = np.linalg.norm(centres[-1] - centres[0]), np.abs(sizes[-1, 0] - sizes[0, 0])
    return off <= max(OFF * max(scene.size), seen / 2) and not grown > GROWN  # its size is NaN if it is not whole


def _direction(scene: Scene, i: int) -> Asked | str:
    def read(frames: slice) -> tuple[str, ...] | None:
        trials = scene.trials(*scene.steady(scene.paths[i], frames))
        return _agreed(_way(step) for path in trials for step in _steps(path))

    return _first(scene, "object_direction", "{seen}, in which direction does {x} move {span}?", (i,), read)


def _steps(path: np.ndarray) -> list[np.ndarray]:
    """The whole way, and twice its halves: right, down, ahead."""
    first, middle, last = path[0], path[len(path) // 2], path[-1]
    return [last - first, 2 * (middle - first), 2 * (last - middle)]


def _way(step: np.ndarray) -> tuple[str, ...] | None:
    """Which of `DIRECTIONS` a step over level ground goes. The camera looks on the ground from above: what goes away
    goes up in the picture, and what goes down without coming nearer falls."""
    right, down, ahead = step.tolist()
    to_left, to_right, toward, away = OBJECT_DIRECTIONS
    upright = math.hypot(down, ahead)
    angle = math.degrees(math.atan2(upright, abs(right)))
    if math.hypot(right, upright) < MOVED:
        return None
    if angle < STRAIGHT:
        return (to_right if right > 0 else to_left,)
    if angle > 90 - STRAIGHT and down * ahead <= 0 and abs(ahead) > abs(down) / 2:
        return (away if ahead > 0 else toward,)
    return None


def _distance(scene: Scene, i: int) -> Asked | str:
    path = scene.paths[i]

    def read(frames: slice) -> tuple[str, ...] | None:
        logs = [
            np.log(np.linalg.norm(trial, axis=-1)) for trial in scene.trials(path.centres[frames], path.sizes[frames])
        ]
        return _agreed(find_changes(log * strict, "dis") for log in logs for strict in STRICT)

    return _first(
        scene,
        "distance_change",
        "Seen from the camera as it moves, how does the distance to {x} change {span}?",
        (i,),
        read,
    )


def _speed(scene: Scene, i: int) -> Asked | str:
    def read(frames: slice) -> tuple[str, ...] | None:
        if np.ptp(scene.times[frames]) < LONG:
            return None
        trials = scene.trials(*scene.steady(scene.paths[i], frames))
        logs = [np.log(np.maximum(_speeds(path, scene.times[frames]), low)) for path in trials for low in SLOWEST]
        return _agreed(find_changes(log * strict, "spd") for log in logs for strict in STRICT)

    return _first(scene, "speed_change", "{seen}, how does the speed of {x} change {span}?", (i,), read)


def _speeds(path: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.gradient(path, times, axis=0), axis=-1)


def _faster(scene: Scene, i: int, j: int) -> Asked | str:
    def read(frames: slice) -> tuple[str, ...] | None:
        times = scene.times[frames]
        one, two = (
            [_speeds(path, times) for path in scene.trials(*scene.steady(scene.paths[k], frames))] for k in (i, j)
        )
        trials = itertools.product(zip(one, two, strict=True), SCALES)
        return _agreed(
            find_runs(_leads(first / math.sqrt(scale), second * math.sqrt(scale))) for (first, second), scale in trials
        )

    question = "{seen}, which is faster {span}: first, {x}, or second, {y}?"
    return _first(scene, "faster_object", question, (i, j), read)


def _leads(one: np.ndarray, two: np.ndarray) -> list[str | None]:
    first, second, _ = CHANGE_WORDS["spd_comp"]
    ratio = np.maximum(one, SLOWEST[0]) / np.maximum(two, SLOWEST[0])
    fast = np.maximum(one, two) > FAST
    return [
        None if not ok or 1 / FASTER_RATIO < r < FASTER_RATIO else first if r > 1 else second
        for ok, r in zip(fast.tolist(), ratio.tolist(), strict=True)
    ]


def _side(scene: Scene, i: int, j: int) -> Asked | str:
    def read(frames: slice) -> tuple[str, ...] | None:
        if any("roll" in name for span in scene.within(frames) for name in span.motions):
            return None  # left in the picture is then not left on the ground
        x = (scene.paths[i].centres[frames, 0] - scene.paths[j].centres[frames, 0]) / scene.size[0]
        if not np.abs(x[[0, -1]]).min() > APART[-1]:
            return None
        return _agreed(
            find_runs([SIDES[step > 0] if abs(step) > apart else None for step in x.tolist()]) for apart in APART
        )

    question = "Seen from the camera as it moves, on which side of {y} is {x} {span}?"
    return _first(scene, "spatial_description", question, (i, j), read)


def _first(
    scene: Scene, task: str, question: str, who: tuple[int, ...], read: Callable[[slice], tuple[str, ...] | None]
) -> Asked | str:
    """The question about the first of the spans in which `who` are seen whose answer `read` tells."""
    side = task == "spatial_description"  # for which a centre will do
    shown = np.logical_and.reduce([scene.paths[i].seen if side else scene.paths[i].whole for i in who])
    pieces = np.stack([scene.paths[i].piece for i in who])
    spans = _spans(scene, shown, pieces, PASSING if side else GAP)
    if not spans:
        return "not seen long enough"
    if task in STEADIED:
        spans = [frames for frames in spans if scene.sure(frames)]
    if not spans:
        return "unsure of the camera"
    for frames in spans:
        answer = read(frames)
        if answer is None or sequence_text(answer) not in ANSWERS[task]:
            continue
        num = 3 if len(answer) > 1 or task == "speed_change" else 2
        known = np.flatnonzero(shown[frames]) + frames.start
        moments = [int(known[np.abs(known - at).argmin()]) for at in np.linspace(frames.start, frames.stop - 1, num)]
        looks = [(i, frame) for i in who for frame in moments]
        return _asked(scene, task, question, sequence_text(answer), frames, who, looks)
    return "unsure"


def _asked(
    scene: Scene,
    task: str,
    question: str,
    answer: str,
    frames: slice,
    who: tuple[int, ...],
    looks: list[tuple[int, int]],
) -> Asked:
    steadied = task in STEADIED and not scene.static(frames)
    start, end = (round(float(scene.times[k]), 1) for k in (frames.start, frames.stop - 1))
    names = tuple(scene.paths[i].name for i in who)
    words = dict(zip("xy", (f"the {name}" for name in names), strict=False))
    words["seen"] = f"Seen from where the camera is at {format_seconds(start)}"
    words["span"] = f"from {format_seconds(start)} to {format_seconds(end)}"
    places = []
    for i, frame in looks:
        path = scene.paths[i]
        centre, extent = path.centres[frame], path.extents[frame]
        if steadied:
            centres, sizes = scene.steady(path, frames)
            centre, extent = centres[frame - frames.start], sizes[frame - frames.start, 0]
        places.append((*(centre / scene.size).tolist(), float(np.exp(extent) / max(scene.size))))
    times = tuple(round(float(scene.times[frame]), 1) for _, frame in looks)
    text = question.format(**words)
    return Asked(task, text, answer, start, end, tuple(looks), times, tuple(places), who, names, steadied)
