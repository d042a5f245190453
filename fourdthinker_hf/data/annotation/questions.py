"""Asks questions about a real shot and answers them from its pixels: from the camera's motion and masks over time.

| task | what is asked, of a span of the shot | what the answer is read from |
| --- | --- | --- |
| camera_motion | how does the camera move | a span of the estimated camera motion |
| camera_moves | does the camera move at all | the same |
| picture_direction | which way does an object move in the picture of a still camera | the centres of its masks |
| object_direction | does an object move to the left or right, toward or away from the camera | its trajectory |
| distance_change | how does the distance between the camera and an object change | its size in the picture |
| speed_change | how does the speed of an object change | its trajectory |
| faster_object | which of two objects is faster | their trajectories |
| spatial_description | on which side of another object is an object | the centres of their masks |

What pixels do not tell (see `motion_measurement.py`, and the scale of one object relative to another) is tried over a
range, and so are thresholds that are stricter and laxer than those of simulated questions. **A question is asked only
if every trial gives the same answer.**

In the simulated benchmark the answer is drawn first, so that the text of a question tells nothing about it. Here this
is not possible. `answer_options.py` balances the answers afterwards, over the whole data set.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..question_vocabulary import (
    CAMERA_MOTION_PAIRS,
    CAMERA_MOTIONS,
    CHANGE_WORDS,
    OBJECT_DIRECTIONS,
    STATIC_CAMERA,
    all_sequences,
    format_seconds,
    sequence_text,
)
from ..value_changes import FASTER_RATIO, find_changes, find_runs
from .background_motion import PLAIN_CONFIDENCE
from .camera_motion import CameraMotion, CameraMotionSpan
from .motion_measurement import SMOOTHING_RADIUS, SPAN_MARGIN, MeasuredShot, has_no_noun
from .object_description import POSITION_PHRASES
from .question_wordings import WORDINGS
from .shots import Shot
from .tracking import Track

# Confidence of a single camera motion that is asked about, and of a pair of motions. On 90 clips of a development seed
# 61 of 62 single motions above 0.7 were right, but only 5 of 10 pairs.
MIN_MOTION_CONFIDENCE, MIN_PAIR_CONFIDENCE = 0.7, 0.98
MIN_FRAMES, MIN_DURATION = 6, 1.5  # of a span; s
MIN_SPEED_DURATION = 5 * SMOOTHING_RADIUS  # s of a span in which a sudden change of speed does not look gradual
MAX_GAP, MAX_PASSING_GAP = 3, 16  # frames in a row without a whole mask; the same while one object passes another
MIN_CROSSING_DURATION = 0.7  # s of a span in which something crosses the picture
MIN_PLAIN_DURATION = 1.2  # s of a span in which the camera's motion is plain
MAX_ANGLE = 22.0  # degrees between a displacement and the direction that is its answer
MIN_PICTURE_SHIFT, MIN_SHIFT_IN_SIZES = 0.06, 0.5  # of the longer side; of the root of a thing's area
MAX_PICTURE_ANGLE = 30.0  # degrees between a shift in the picture and the direction that is its answer
MIN_STRAIGHTNESS = 0.8  # distance that an object gets, relative to the length of its path
MIN_DISPLACEMENT = 0.06  # m per m of depth
MIN_FASTER_SPEED = 0.04  # m/s per m of depth, of the object that is faster
# Tried: the scale of the other object relative to the first, factors on every change, lower bounds of speeds in m/s
# per m of depth, and horizontal distances in widths of the picture at which one object is beside another.
SCALES, STRICTNESS, MIN_SPEEDS, SIDE_DISTANCES = (0.45, 1.0, 2.2), (0.75, 1.3), (0.01, 0.03), (0.02, 0.06)
COMPENSATED_TASKS = ("object_direction", "speed_change", "faster_object")  # the camera's motion is taken out
SIDES = ("left", "right")
PICTURE_DIRECTIONS = ("to the left", "to the right", "up", "down")
CAMERA_MOVES = ("it stands still", "it moves")
# The pairs of motions that are asked about, in the order in which an answer names them.
MOTION_PAIRS = tuple(
    dict.fromkeys((*CAMERA_MOTION_PAIRS, *itertools.product(("pan left", "pan right"), ("tilt up", "tilt down"))))
)

ANSWERS = {
    "camera_motion": tuple(
        " and ".join(names)
        for names in [(STATIC_CAMERA,), *((name,) for name in CAMERA_MOTIONS), *MOTION_PAIRS]
        if not any(name.startswith("orbit") for name in names)  # an orbit looks like a truck with the opposite pan
    ),
    "camera_moves": CAMERA_MOVES,
    "picture_direction": PICTURE_DIRECTIONS,
    "object_direction": tuple(OBJECT_DIRECTIONS),
    "distance_change": tuple(sequence_text(sequence) for sequence in all_sequences(CHANGE_WORDS["dis"], 2)),
    # One change over the whole span: once it is smoothed, a sudden change cannot be told from a gradual one.
    "speed_change": CHANGE_WORDS["spd"],
    **{
        task: tuple(sequence_text(sequence) for sequence in ((a,), (b,), (a, b), (b, a)))
        for task, (a, b) in (("faster_object", CHANGE_WORDS["spd_comp"][:2]), ("spatial_description", SIDES))
    },
}
TASKS = tuple(ANSWERS)


@dataclass(frozen=True)
class AnnotatedQuestion:
    """A question about a span of a shot, with its evidence. Times are in s since the shot's first frame."""

    task: str
    question: str
    answer: str
    start: float
    end: float
    # (track, frame) of each target frame, in the order of the reasoning; the track is None for the whole picture.
    targets: tuple[tuple[int | None, int], ...]
    target_times: tuple[float, ...]
    # Of each target: x, y and size of the object, as shares of the picture's width, height and longer side. Of a
    # question about the camera: once, how far the background shifts right and down, and the log of its growth.
    measurements: tuple[tuple[float, float, float], ...]
    tracks: tuple[int, ...]  # the tracks that are asked about
    names: tuple[str, ...]  # of `tracks`
    camera_compensated: bool  # whether the camera's motion has been taken out of `measurements`
    words: Mapping[str, str]  # what stands in the places of a wording

    def reword(self, rng: np.random.Generator) -> "AnnotatedQuestion":
        """The same question in a wording that is drawn at random."""
        wordings = WORDINGS[self.task]
        return replace(self, question=_fill_in(wordings[rng.integers(len(wordings))], self.words))


def make_questions(
    shot: Shot, camera: CameraMotion, tracks: Sequence[Track]
) -> tuple[list[AnnotatedQuestion], Counter]:
    """All questions with a certain answer, and how often a question was refused, by "task: reason"."""
    measured, refused = MeasuredShot.measure(shot, camera, tracks), Counter()
    questions = []
    for task, make_question, arguments in _candidate_questions(measured):
        result = make_question(measured, *arguments)
        if isinstance(result, AnnotatedQuestion):
            questions.append(result)
        else:
            refused[f"{task}: {result}"] += 1
    return questions, refused


def _candidate_questions(shot: MeasuredShot) -> Iterator[tuple[str, Callable, tuple]]:
    """(task, function, arguments): the function returns the question, or a str that says why it is refused."""
    movers = [i for i, track in shot.tracks.items() if track.moving]
    for span in shot.camera_spans:
        yield "camera_motion", _camera_motion, (span,)
        yield "camera_moves", _camera_moves, (span,)
    for i in movers:
        yield "picture_direction", _picture_direction, (i,)
        yield "object_direction", _object_direction, (i,)
        yield "speed_change", _speed_change, (i,)
    is_static = all(span.motions == (STATIC_CAMERA,) for span in shot.camera_spans)
    for i in movers if is_static else shot.tracks:  # the distance between a static camera and a landmark never changes
        yield "distance_change", _distance_change, (i,)
    for i, j in itertools.combinations(shot.tracks, 2):
        if shot.touching[i, j].mean() > 0.5 or not (i in movers or j in movers):
            continue  # tracks that mostly touch may be parts of one object, such as a wheel and its car
        first, second = (i, j) if i in movers else (j, i)
        yield "spatial_description", _spatial_description, (first, second)
        if second in movers:
            yield "faster_object", _faster_object, (first, second)


# One function for each task


def _camera_motion(shot: MeasuredShot, span: CameraMotionSpan) -> AnnotatedQuestion | str:
    frames = _frames_of_camera_span(shot, span)
    if isinstance(frames, str):
        return frames
    names = next((pair for pair in MOTION_PAIRS if set(pair) == set(span.motions)), span.motions)
    answer = " and ".join(names)
    return _camera_question(shot, "camera_motion", answer, frames) if answer in ANSWERS["camera_motion"] else "unsure"


def _camera_moves(shot: MeasuredShot, span: CameraMotionSpan) -> AnnotatedQuestion | str:
    frames = _frames_of_camera_span(shot, span)
    if isinstance(frames, str):
        return frames
    return _camera_question(shot, "camera_moves", CAMERA_MOVES[span.motions != (STATIC_CAMERA,)], frames)


def _frames_of_camera_span(shot: MeasuredShot, span: CameraMotionSpan) -> slice | str:
    """The frames of a span of which the camera's motion is sure and of which questions are asked, or why there are
    none."""
    num_motions = len(span.motions)
    if span.is_plain:
        min_confidence = PLAIN_CONFIDENCE
    else:
        min_confidence = MIN_PAIR_CONFIDENCE if num_motions > 1 else MIN_MOTION_CONFIDENCE
    if span.confidence < min_confidence:
        return "unsure"
    inside = shot.times - span.start >= SPAN_MARGIN * (span.start > shot.times[0] + SPAN_MARGIN) - 1e-6
    inside &= span.end - shot.times >= SPAN_MARGIN * (span.end < shot.times[-1] - SPAN_MARGIN)
    if not inside.any():
        return "too short"
    frames = slice(int(inside.argmax()), len(inside) - int(inside[::-1].argmax()))
    min_duration = MIN_PLAIN_DURATION if span.is_plain else MIN_DURATION
    return frames if _is_long_enough(shot, frames, min_duration) else "too short"


def _camera_question(shot: MeasuredShot, task: str, answer: str, frames: slice) -> AnnotatedQuestion:
    """A question whose targets are the whole pictures at the span's start and end."""
    targets = [(None, frames.start), (None, frames.stop - 1)]
    return _make_question(shot, task, answer, frames, (), targets)


def _picture_direction(shot: MeasuredShot, i: int) -> AnnotatedQuestion | str:
    if not all(span.motions == (STATIC_CAMERA,) for span in shot.camera_spans):
        return "the camera moves"  # in the picture and over the ground an object may move in different ways

    def answer(frames: slice) -> tuple[str, ...] | None:
        sizes = shot.tracks[i].log_visible_size[frames]
        size = float(np.exp(np.nanmedian(sizes))) / max(shot.size) if not np.isnan(sizes).all() else 0.0
        return _picture_way(shot.tracks[i].path[frames] / max(shot.size), size)

    return _object_question(shot, "picture_direction", (i,), answer)


def _picture_way(centres: np.ndarray, size: float) -> tuple[str, ...] | None:
    """The one of `PICTURE_DIRECTIONS` in which a thing of a size with centres (T, 2) moves; None if that is unclear.

    It must get far, for itself and in the picture, hardly turn back, and go the same way in both halves of its path.
    Some of the centres may be NaN.
    """
    known = centres[~np.isnan(centres).any(1)][::2]  # every other one, since a mask's boundary trembles
    if len(known) < 3:
        return None
    whole = known[-1] - known[0]
    distance, path = np.linalg.norm(whole), np.linalg.norm(np.diff(known, axis=0), axis=1).sum()
    if distance < max(MIN_PICTURE_SHIFT, MIN_SHIFT_IN_SIZES * size, MIN_STRAIGHTNESS * path):
        return None
    if min((known[len(known) // 2] - known[0]) @ whole, (known[-1] - known[len(known) // 2]) @ whole) < 0:
        return None
    right, down = whole.tolist()
    angle = math.degrees(math.atan2(abs(down), abs(right)))
    to_left, to_right, up, downward = PICTURE_DIRECTIONS
    if angle < MAX_PICTURE_ANGLE:
        return (to_right if right > 0 else to_left,)
    return ((downward if down > 0 else up),) if angle > 90 - MAX_PICTURE_ANGLE else None


def _object_direction(shot: MeasuredShot, i: int) -> AnnotatedQuestion | str:
    def answer(frames: slice) -> tuple[str, ...] | None:
        trajectories = shot.possible_trajectories(*shot.compensate_camera(shot.tracks[i], frames))
        return _unanimous(_direction(step) for trajectory in trajectories for step in _displacements(trajectory))

    return _object_question(shot, "object_direction", (i,), answer)


def _displacements(trajectory: np.ndarray) -> list[np.ndarray]:
    """The displacement (N,) over a whole trajectory (T, N), and twice that of each half."""
    first, middle, last = trajectory[0], trajectory[len(trajectory) // 2], trajectory[-1]
    return [last - first, 2 * (middle - first), 2 * (last - middle)]


def _direction(displacement: np.ndarray) -> tuple[str, ...] | None:
    """The one of `OBJECT_DIRECTIONS` that a displacement over level ground has; None if that is unclear.

    The camera looks on the ground from above. Therefore an object that moves away moves up in the picture, and one
    that moves down without coming nearer falls.
    """
    right, down, ahead = displacement.tolist()
    to_left, to_right, toward, away = OBJECT_DIRECTIONS
    upright = math.hypot(down, ahead)
    angle = math.degrees(math.atan2(upright, abs(right)))
    if math.hypot(right, upright) < MIN_DISPLACEMENT:
        return None
    if angle < MAX_ANGLE:
        return (to_right if right > 0 else to_left,)
    if angle > 90 - MAX_ANGLE and down * ahead <= 0 and abs(ahead) > abs(down) / 2:
        return (away if ahead > 0 else toward,)
    return None


def _distance_change(shot: MeasuredShot, i: int) -> AnnotatedQuestion | str:
    track = shot.tracks[i]

    def answer(frames: slice) -> tuple[str, ...] | None:
        trajectories = shot.possible_trajectories(track.centres[frames], track.log_sizes[frames])
        log_distances = [np.log(np.linalg.norm(trajectory, axis=-1)) for trajectory in trajectories]
        return _unanimous(find_changes(logs * factor, "dis") for logs in log_distances for factor in STRICTNESS)

    return _object_question(shot, "distance_change", (i,), answer)


def _speed_change(shot: MeasuredShot, i: int) -> AnnotatedQuestion | str:
    def answer(frames: slice) -> tuple[str, ...] | None:
        times = shot.times[frames]
        if np.ptp(times) < MIN_SPEED_DURATION:
            return None
        trajectories = shot.possible_trajectories(*shot.compensate_camera(shot.tracks[i], frames))
        speeds = [_speeds(trajectory, times) for trajectory in trajectories]
        log_speeds = [np.log(np.maximum(speed, floor)) for speed in speeds for floor in MIN_SPEEDS]
        return _unanimous(find_changes(logs * factor, "spd") for logs in log_speeds for factor in STRICTNESS)

    return _object_question(shot, "speed_change", (i,), answer)


def _speeds(trajectory: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.gradient(trajectory, times, axis=0), axis=-1)


def _faster_object(shot: MeasuredShot, i: int, j: int) -> AnnotatedQuestion | str:
    def answer(frames: slice) -> tuple[str, ...] | None:
        times = shot.times[frames]
        speeds = []
        for k in (i, j):
            trajectories = shot.possible_trajectories(*shot.compensate_camera(shot.tracks[k], frames))
            speeds.append([_speeds(trajectory, times) for trajectory in trajectories])
        trials = itertools.product(zip(*speeds, strict=True), SCALES)
        return _unanimous(
            find_runs(_faster_labels(first / math.sqrt(scale), second * math.sqrt(scale)))
            for (first, second), scale in trials
        )

    return _object_question(shot, "faster_object", (i, j), answer)


def _faster_labels(first: np.ndarray, second: np.ndarray) -> list[str | None]:
    """For each frame which of two speeds (T,) is higher; None where that is unclear."""
    first_faster, second_faster, _ = CHANGE_WORDS["spd_comp"]
    ratios = np.maximum(first, MIN_SPEEDS[0]) / np.maximum(second, MIN_SPEEDS[0])
    fast_enough = np.maximum(first, second) > MIN_FASTER_SPEED
    return [
        None if not fast or 1 / FASTER_RATIO < ratio < FASTER_RATIO else first_faster if ratio > 1 else second_faster
        for fast, ratio in zip(fast_enough.tolist(), ratios.tolist(), strict=True)
    ]


def _spatial_description(shot: MeasuredShot, i: int, j: int) -> AnnotatedQuestion | str:
    def answer(frames: slice) -> tuple[str, ...] | None:
        if any("roll" in name for span in shot.camera_spans_in(frames) for name in span.motions):
            return None  # while the camera rolls, left in the picture is not left on the ground
        offsets = (shot.tracks[i].centres[frames, 0] - shot.tracks[j].centres[frames, 0]) / shot.size[0]
        if not np.abs(offsets[[0, -1]]).min() > SIDE_DISTANCES[-1]:
            return None
        return _unanimous(
            find_runs([SIDES[offset > 0] if abs(offset) > distance else None for offset in offsets.tolist()])
            for distance in SIDE_DISTANCES
        )

    return _object_question(shot, "spatial_description", (i, j), answer)


# What the tasks share


def _object_question(
    shot: MeasuredShot, task: str, tracks: tuple[int, ...], answer: Callable[[slice], tuple[str, ...] | None]
) -> AnnotatedQuestion | str:
    """The question about the first span for which `answer` gives one; else the reason why it is refused."""
    is_spatial = task == "spatial_description"
    # Its answer needs the centres only, so the masks need not be whole.
    usable = np.logical_and.reduce([shot.tracks[i].visible if is_spatial else shot.tracks[i].whole for i in tracks])
    segments = np.stack([shot.tracks[i].segment for i in tracks])
    if task == "picture_direction":  # a size that jumps does not change where a thing is
        usable = np.logical_and.reduce([~np.isnan(shot.tracks[i].path[:, 0]) for i in tracks])
        segments = np.zeros_like(segments)
    min_duration = MIN_CROSSING_DURATION if task == "picture_direction" else MIN_DURATION
    spans = _candidate_spans(shot, usable, segments, MAX_PASSING_GAP if is_spatial else MAX_GAP, min_duration)
    if not spans:
        return "not seen long enough"
    if task in COMPENSATED_TASKS:
        spans = [frames for frames in spans if shot.is_camera_known(frames)]
    if not spans:
        return "unsure of the camera"
    for frames in spans:
        sequence = answer(frames)
        if sequence is None or sequence_text(sequence) not in ANSWERS[task]:
            continue
        names = [_full_name(shot, i, frames.start) for i in shot.tracks]
        if any(names.count(_full_name(shot, i, frames.start)) > 1 for i in tracks):
            return "another thing looks the same"
        num_targets = 3 if len(sequence) > 1 or task == "speed_change" else 2  # for each track
        measured = np.logical_and.reduce([~np.isnan(shot.tracks[i].log_visible_size[frames]) for i in tracks])
        known = np.flatnonzero(usable[frames] & measured) + frames.start
        if len(known) < num_targets:
            continue
        wanted = np.linspace(frames.start, frames.stop - 1, num_targets)
        targets = [(i, int(known[np.abs(known - frame).argmin()])) for i in tracks for frame in wanted]
        return _make_question(shot, task, sequence_text(sequence), frames, tracks, targets)
    return "unsure"


def _candidate_spans(
    shot: MeasuredShot, usable: np.ndarray, segments: np.ndarray, max_gap: int, min_duration: float
) -> list[slice]:
    """The longest run of usable frames, then its first and its last two thirds, as far as they are long enough.

    `usable` is (T,) bool; a run may have gaps of `max_gap` frames, and `segments` (tracks, T) do not change within it.
    """
    longest, start, last = slice(0, 0), 0, -max_gap - 1
    for t in np.flatnonzero(usable).tolist():
        if t - last > max_gap or (segments[:, t] != segments[:, last]).any():
            start = t
        last = t
        longest = max(longest, slice(start, t + 1), key=lambda run: run.stop - run.start)
    third = (longest.stop - longest.start) // 3
    parts = [longest, slice(longest.start, longest.stop - third), slice(longest.start + third, longest.stop)]
    return [part for part in parts if _is_long_enough(shot, part, min_duration)]


def _is_long_enough(shot: MeasuredShot, frames: slice, min_duration: float) -> bool:
    num_frames = frames.stop - frames.start
    return num_frames >= MIN_FRAMES and shot.times[frames.stop - 1] - shot.times[frames.start] >= min_duration - 1e-6


def _unanimous(answers: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The answer of all trials if they agree, else None. It stops at the first that does not."""
    agreed = None
    for answer in answers:
        if answer is None or (agreed is not None and answer != agreed):
            return None
        agreed = answer
    return agreed


def _make_question(
    shot: MeasuredShot,
    task: str,
    answer: str,
    frames: slice,
    tracks: tuple[int, ...],
    targets: Sequence[tuple[int | None, int]],
) -> AnnotatedQuestion:
    """The question in the first wording of its task, with its targets measured."""
    compensated = task in COMPENSATED_TASKS and not shot.is_camera_static(frames)
    start, end = (round(float(shot.times[k]), 1) for k in (frames.start, frames.stop - 1))
    names = tuple(shot.tracks[i].name for i in tracks)
    words = dict(zip("xy", (_full_name(shot, i, frames.start) for i in tracks), strict=False))
    words["viewpoint"] = f"seen from where the camera is at {format_seconds(start)}"
    words["span"] = f"from {format_seconds(start)} to {format_seconds(end)}"
    measurements = []
    if not tracks and shot.background is not None:
        measurements = [shot.background.between(frames)]
    for i, frame in targets if tracks else ():
        track = shot.tracks[i]
        centre, log_size = track.path[frame], track.log_visible_size[frame]
        if compensated:
            centres, log_sizes = shot.compensate_camera(track, frames)
            centre, log_size = centres[frame - frames.start], log_sizes[frame - frames.start, 0]
        measurements.append((*(centre / shot.size).tolist(), float(np.exp(log_size) / max(shot.size))))
    return AnnotatedQuestion(
        task,
        _fill_in(WORDINGS[task][0], words),
        answer,
        start,
        end,
        tuple(targets),
        tuple(round(float(shot.times[frame]), 1) for _, frame in targets),
        tuple(measurements),
        tracks,
        names,
        compensated,
        words,
    )


def _full_name(shot: MeasuredShot, i: int, frame: int) -> str:
    """A track's name with its article. What has no noun is told by its place at a time as well.

    For example "the large red thing that is at the lower left at 0.5 s". The time is that of the first frame from
    `frame` on in which it is seen.
    """
    track = shot.tracks[i]
    known = ~np.isnan(track.path[frame:, 0])
    if not has_no_noun(track.name) or not known.any():
        return f"the {track.name}"
    frame += int(np.argmax(known))
    x, y = (track.path[frame] / shot.size).tolist()
    column, row = (["left", "", "right"][int(3 * min(x, 0.99))], ["upper", "", "lower"][int(3 * min(y, 0.99))])
    row = row if column else {"upper": "top", "lower": "bottom"}.get(row, "")
    place = f"at the {row} {column}".replace("  ", " ").rstrip() if row or column else "in the middle"
    name = track.name
    for phrase in POSITION_PHRASES:
        name = name.removesuffix(phrase)
    moving = "moving " if track.moving else ""
    return f"the {moving}{name} that is {place} at {format_seconds(round(float(shot.times[frame]), 1))}"


def _fill_in(wording: str, words: Mapping[str, str]) -> str:
    text = wording.format(**words)
    return re.sub(r"(^|[.] )[a-z]", lambda start: start[0].upper(), text)
