"""Draws template questions, and scenes that are likely to show a wanted answer.

`sample_specs` draws everything that a question says (objects, times, agent) before its answer is chosen, so that the
wording does not hint at the answer. `sample_scene` then draws scenes in which the answer is likely to be the wanted
one; whether it is, `questions.find_answer` decides from the simulated truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from ..question_vocabulary import CHANGE_WORDS, STATIC_CAMERA
from .camera_paths import CAMERA_AT_REST, camera_path, sample_camera_moves
from .physics import servo_targets
from .rendering import FPS
from .scenes import (
    AT_REST,
    CAMERA,
    FOREVER,
    SHAPES_WITH_FRONT,
    SPLITS,
    TEXTURES,
    Body,
    CameraMove,
    MotionSegment,
    ObjectSet,
    Scene,
)
from .template_questions import MOVES_AROUND, PLACES_AROUND, STAYS, QuestionSpec

MAX_OBJECTS = {1: 3, 2: 4, 3: 6}  # by level
CAMERA_LIFTS = {"down": "pedestal up", "up": "pedestal down"}  # how the camera moves for an object to seem to do so
# Probability, by level, that an object is pushed so as to hit another one: about one clip in five has a collision.
COLLISION_PROBABILITY = {1: 0.0, 2: 0.2, 3: 0.1}


@dataclass(frozen=True)
class SceneSpec:
    """What a scene is to consist of."""

    objects: tuple[tuple[str, str], ...]  # colour and shape of each; those that the question is about come first
    duration: float  # s
    level: int
    split: str

    @property
    def object_set(self) -> ObjectSet:
        return SPLITS[self.split]


def sample_times(rng: Generator, level: int, split: str, kind: str) -> tuple[float, float, float]:
    """Length of the clip, and start and end of the span, in s.

    The objects of the split "unseen" are fast and soon out of view, so their spans are at most 3 s long.
    """
    if level == 1:
        return 4.0, float(rng.choice([0, 0.5, 1])), float(rng.choice([3, 3.5]))
    duration = float(rng.integers(5, 11) if level == 2 else rng.integers(2 if kind == "dir_pred" else 4, 21))
    shortest = int(min(3, duration - 1))
    length = shortest if split == "unseen" else int(rng.integers(shortest, min(duration, 13)))
    start = float(rng.integers(0, duration - length))
    return duration, start, start + length


def sample_specs(rng: Generator, task: str, level: int, split: str) -> tuple[QuestionSpec, SceneSpec]:
    """Draw what a question of `task` asks about, and the objects and length of its scene."""
    object_set, kind = SPLITS[split], task[4:]
    duration, start, end = sample_times(rng, level, split, kind)
    asks_about_camera = kind == "ori" and rng.random() < 0.25
    seen_from_camera = rng.random() < (0.5 if kind != "spd" else 0.7)
    has_other = kind == "spd_comp" or kind == "dis" and rng.random() < 0.4
    shapes, subject, other = [], CAMERA, None
    if not asks_about_camera:
        shapes.append(str(rng.choice(object_set.shapes_with_front if kind == "ori" else object_set.shapes)))
        subject = 0
    if has_other:
        other = len(shapes)
        shapes.append(str(rng.choice(object_set.shapes)))
    seen_from_camera = seen_from_camera or has_other and kind == "dis"
    if asks_about_camera and task.startswith("rel"):
        seen_from_camera = False
    agent = CAMERA if seen_from_camera else len(shapes)
    if not seen_from_camera:
        shapes.append(str(rng.choice(object_set.shapes_with_front)))
    most = min(MAX_OBJECTS[level], len(object_set.colours))
    num_objects = int(rng.integers(max(2, len(shapes)), max(most, len(shapes)) + 1))
    shapes += rng.choice(object_set.shapes, num_objects - len(shapes)).tolist()
    colours = rng.permutation(list(object_set.colours))[:num_objects].tolist()
    if kind == "dir_pred":
        start, end = max(0.0, duration - 2.0), duration - 1 / FPS
    view_time = float(rng.integers(0, int(start) + 1))
    scene_spec = SceneSpec(tuple(zip(colours, map(str, shapes), strict=True)), duration, level, split)
    return QuestionSpec(task, agent, subject, other, view_time, start, end), scene_spec


def sample_scene(rng: Generator, question: QuestionSpec, spec: SceneSpec, wanted: Sequence[str]) -> Scene | None:
    """Draw a scene in which the answer to `question` is likely to be `wanted`; None if this draw did not succeed."""
    moves = _sample_question_camera(rng, question, spec, wanted)
    low_camera = question.kind == "dir" and question.agent == CAMERA and "below" not in wanted[0]
    scene = sample_empty_scene(rng, spec.level, spec.duration, moves, low_camera)
    only_camera_moves = spec.level == 1 and moves != CAMERA_AT_REST
    bodies: dict[int, Body] = {}
    if question.kind == "dir":
        sample = _sample_across_view if question.agent == CAMERA else _sample_around_agent
        drawn = sample(rng, question, spec, wanted, scene)
        if not drawn:
            return None
        bodies.update(zip((question.subject, question.agent), drawn, strict=False))
    elif question.kind == "spd_comp":
        pair = _sample_compared_pair(rng, scene, question, spec, wanted)
        bodies.update(zip((question.subject, question.other), pair, strict=True))
    middle = (question.start + question.end) / 2
    for i in (question.agent, question.other):
        if i is not None and i != CAMERA and i not in bodies:
            probability = 0.3 if question.relative or i == question.other else 0.15
            moves_too = not only_camera_moves and question.subject != CAMERA and rng.random() < probability
            body = sample_body(rng, spec, i, segments=(AT_REST,))
            point = sample_visible_point(rng, scene, middle, body.half_height)
            if moves_too:
                speed = _sample_speed(rng, spec.object_set, question.end - question.start, 2.0)
                turn_rate = float(rng.uniform(-15, 15)) if spec.level > 1 else 0.0
                body = replace(body, segments=(MotionSegment(FOREVER, speed, speed, body.yaw, turn_rate),))
            bodies[i] = place_to_pass(body, point, middle)
    if question.subject != CAMERA and question.subject not in bodies:
        bodies[question.subject] = _sample_subject(rng, scene, question, spec, wanted, bodies)
    for i in range(len(spec.objects)):
        if i not in bodies:
            bodies[i] = sample_unasked_body(rng, scene, spec, i, only_camera_moves)
        elif only_camera_moves:
            bodies[i] = replace(bodies[i], segments=(AT_REST,))
    if rng.random() < COLLISION_PROBABILITY[spec.level]:
        _aim_push(rng, question, bodies)
    return replace(scene, objects=tuple(bodies[i] for i in range(len(spec.objects))))


# The camera


def sample_empty_scene(
    rng: Generator, level: int, duration: float, moves: tuple[CameraMove, ...], low_camera: bool = False
) -> Scene:
    """Draw a scene without objects.

    The camera's height, pitch and field of view are those of `basic_scenes` at level 1, and vary more at the others;
    with `low_camera` it is about 1 m above the ground there.
    """
    if level == 1:
        height, pitch, fov = rng.uniform(3.3, 4.0), rng.uniform(30, 40), rng.uniform(49, 54)
    else:
        height, fov = rng.uniform(0.8, 1.2) if low_camera else rng.uniform(1.6, 4.5), rng.uniform(45, 68)
        pitch = np.degrees(np.arctan(height / rng.uniform(4.5, 7.5)))
    orbit_distance = height / np.tan(np.radians(pitch))
    view = tuple(map(float, (height, pitch, fov, orbit_distance)))
    phase, appearance_seed = float(rng.random()), int(rng.integers(2**31))
    return Scene((), moves, duration, level, *view, phase, appearance_seed)


def _sample_question_camera(
    rng: Generator, question: QuestionSpec, spec: SceneSpec, wanted: Sequence[str]
) -> tuple[CameraMove, ...]:
    if question.subject == CAMERA:
        return _sample_turning_camera(rng, question, wanted)
    if wanted[0] in CAMERA_LIFTS:  # the object is at rest, and the camera rises or sinks
        lift = CameraMove(FOREVER, (CAMERA_LIFTS[wanted[0]],), (float(rng.uniform(0.4, 0.6)),))
        return (CameraMove(max(0.01, question.end - float(rng.uniform(1.4, 1.8))), (STATIC_CAMERA,), (0.0,)), lift)
    moving_viewer = question.relative and question.agent == CAMERA
    # At level 1 either the camera moves or the objects do.
    probability = {1: 0.4 * moving_viewer, 2: 0.75, 3: 0.85}[spec.level]
    if rng.random() >= probability:
        return CAMERA_AT_REST
    num_moves = 1 if spec.level < 3 else int(rng.integers(1, 3))
    strength = 0.5 if moving_viewer and spec.level > 1 else 1.0
    pair_probability = {1: 0.0, 2: 0.3, 3: 0.5}[spec.level]
    return sample_camera_moves(rng, spec.duration, num_moves, pair_probability, strength)


def _sample_turning_camera(rng: Generator, question: QuestionSpec, wanted: Sequence[str]) -> tuple[CameraMove, ...]:
    left, right, _ = CHANGE_WORDS["ori"]
    moves = []
    for until, words, length in _sample_run_times(rng, question, wanted):
        if words in (left, right):
            names, rates = ("pan left" if words == left else "pan right",), (float(rng.uniform(30, 45) / length),)
        else:
            names, rates = (STATIC_CAMERA,), (0.0,)
        moves.append(CameraMove(min(until, question.end + 0.5), names, rates))
    return (*moves, *CAMERA_AT_REST)


# Bodies and where they are placed


def sample_body(rng: Generator, spec: SceneSpec, i: int, **fields) -> Body:
    """Draw the size, texture and yaw of object i, which stands at the origin; `fields` override what is drawn."""
    colour, shape = spec.objects[i]
    low, high = (0.42, 0.52) if spec.level == 1 else (0.28, 0.55)
    half_height = float(rng.uniform(low, high))
    if shape in SHAPES_WITH_FRONT:
        half_height *= 0.85
    texture = "plain" if spec.level == 1 else str(rng.choice(TEXTURES))
    yaw = float(rng.uniform(-180, 180))
    drawn = {"yaw": yaw, "start": (0.0, 0.0, half_height), "texture": texture}
    return Body(colour, shape, half_height, **{**drawn, **fields})


def visible_point(scene: Scene, frame: int, u: float, v: float, z: float) -> np.ndarray | None:
    """The point (x, y) at height z that is seen at (u, v), 0 to 1 from the frame's top left; None if it is too far."""
    camera_positions, rotations = camera_path(scene)
    focal = 1 / 2 / np.tan(np.radians(scene.fov / 2))
    ray = rotations[frame] @ np.array([(u - 0.5) / focal, (0.5 - v) / focal, -1.0])
    if ray[2] > -0.02:
        return None
    offset = ray[:2] * (z - camera_positions[frame, 2]) / ray[2]
    farthest = 7.5 if scene.level == 1 else 10
    return camera_positions[frame, :2] + offset if np.linalg.norm(offset) < farthest else None


def sample_visible_point(rng: Generator, scene: Scene, time: float, z: float) -> np.ndarray:
    """Draw a point (x, y) at height z that the camera sees at `time` s."""
    frame = min(round(time * FPS), scene.num_frames - 1)
    for _ in range(10):
        if (point := visible_point(scene, frame, rng.uniform(0.12, 0.88), rng.uniform(0.3, 0.9), z)) is not None:
            return point
    return np.array([0.0, scene.orbit_distance])


def place_to_pass(body: Body, point: np.ndarray, time: float) -> Body:
    """Move a driven body's start so that the body passes `point` at `time` s."""
    frame = round(time * FPS)
    velocities = servo_targets(body, frame + 1)[0][:frame]
    x, y = point - velocities.sum(0) / FPS
    return replace(body, start=(float(x), float(y), body.half_height))


def unit_vector(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


# The motion of the objects that are asked about


def _sample_run_times(rng: Generator, question: QuestionSpec, wanted: Sequence[str]) -> list[tuple[float, str, float]]:
    """Divide the span among the wanted runs: (until s, words, length s) of each; the last one goes on after it."""
    cuts = np.cumsum(rng.uniform(0.7, 1.3, len(wanted)))
    ends = question.start + (question.end - question.start) * cuts / cuts[-1]
    lengths = np.diff(np.concatenate([[question.start], ends]))
    ends[-1] = FOREVER
    return list(zip(ends.tolist(), wanted, lengths.tolist(), strict=True))


def _sample_speed(
    rng: Generator, objects: ObjectSet, duration: float | None = None, max_distance: float = 3.0
) -> float:
    """Draw a constant speed; over `duration` s it covers at most `max_distance` m, if the object set allows that."""
    low, high = objects.speeds
    if duration:
        high = max(low, min(high, max_distance / duration))
        low = min(low, high) if objects.speeds[0] > 1 else min(0.25, high)
    return float(rng.uniform(low, high))


def _sample_changing_speeds(rng: Generator, objects: ObjectSet, wanted: Sequence[str]) -> list[tuple[float, float]]:
    """Draw the speeds at the start and end of each wanted run of spd."""
    up, down, _ = CHANGE_WORDS["spd"]
    low, high = (0.25, objects.speeds[1]) if objects.speeds[0] < 1 else (0.6, objects.speeds[1])
    logs = [0.0]
    for words in wanted:
        logs.append(logs[-1] + (words == up) * rng.uniform(0.75, 1.2) - (words == down) * rng.uniform(0.75, 1.2))
    lowest, highest = min(logs), max(logs)
    shift = rng.uniform(np.log(low) - lowest, max(np.log(high) - highest, np.log(low) - lowest + 0.01))
    speeds = np.minimum(np.exp(np.array(logs) + shift), high)
    if rng.random() < 0.35:  # the slowest speed becomes rest
        speeds[np.array(logs) == lowest] = 0.0
    return list(zip(speeds[:-1].tolist(), speeds[1:].tolist(), strict=True))


def _sample_turn_rate(rng: Generator, length: float) -> float:
    """Draw a turn rate in degrees/s that keeps a path of `length` m within view."""
    return 0.0 if length < 3 else float(rng.choice([-1, 1]) * rng.uniform(20, 45))


def _sample_subject(
    rng: Generator,
    scene: Scene,
    question: QuestionSpec,
    spec: SceneSpec,
    wanted: Sequence[str],
    bodies: dict[int, Body],
) -> Body:
    """Draw the subject of a question of kind dis, ori, spd or dir_pred."""
    body = sample_body(rng, spec, question.subject)
    camera_positions, rotations = camera_path(scene)
    frame = min(round((question.end if question.relative else question.view_time) * FPS), scene.num_frames - 1)
    if question.kind == "dir_pred":
        ahead = -rotations[frame, :, 2]
        camera_yaw = float(np.degrees(np.arctan2(ahead[1], ahead[0])))
        agent_yaw = camera_yaw if question.agent == CAMERA else bodies[question.agent].yaw
        return _sample_predictable_subject(rng, scene, question, spec, wanted[0], agent_yaw, body)
    up, down, _ = CHANGE_WORDS["spd"]
    slows_down = question.kind == "spd" and wanted[0] == down and len(wanted) <= 2 and wanted[-1] != up
    if slows_down and spec.level > 1 and body.shape not in SHAPES_WITH_FRONT and rng.random() < 0.35:
        return _sample_pushed_subject(rng, scene, question, body)
    other = question.other if question.other is not None else question.agent
    reference = camera_positions[frame, :2] if other == CAMERA else np.array(bodies[other].start[:2])
    return _sample_driven_subject(rng, scene, question, spec, wanted, body, reference)


def _sample_driven_subject(
    rng: Generator,
    scene: Scene,
    question: QuestionSpec,
    spec: SceneSpec,
    wanted: Sequence[str],
    body: Body,
    reference: np.ndarray,
) -> Body:
    """Give the subject of dis, ori or spd its motion; `reference` (x, y) is what a distance is measured to."""
    middle = (question.start + question.end) / 2
    point = sample_visible_point(rng, scene, middle, body.half_height)
    run_times, heading = _sample_run_times(rng, question, wanted), float(rng.uniform(-180, 180))
    segments = []
    if question.kind == "dis":
        away = point - reference
        heading = float(np.degrees(np.arctan2(away[1], away[0])) + rng.uniform(-30, 30))
        signs = dict(zip(CHANGE_WORDS["dis"], (1, -1, 0), strict=True))
        for until, words, length in run_times:
            speed = signs[words] * _sample_speed(rng, spec.object_set, length)
            segments.append(MotionSegment(until, speed, speed, heading))
        body = replace(body, yaw=heading)
    elif question.kind == "ori":
        signs = dict(zip(CHANGE_WORDS["ori"], (1, -1, 0), strict=True))
        speed = 0.0 if rng.random() < 0.4 else _sample_speed(rng, spec.object_set, question.end - question.start)
        for until, words, length in run_times:
            turn_rate = float(signs[words] * rng.uniform(45, 110) / length)
            segments.append(MotionSegment(until, speed, speed, 0.0, turn_rate))
    else:
        speeds = _sample_changing_speeds(rng, spec.object_set, wanted)
        path_length = sum((a + b) / 2 * length for (a, b), (_, _, length) in zip(speeds, run_times, strict=True))
        turn_rate = _sample_turn_rate(rng, path_length)
        first_speed, last_speed = speeds[0][0], speeds[-1][1]
        segments.append(MotionSegment(max(question.start, 1e-3), first_speed, first_speed, heading, turn_rate))
        for (start_speed, end_speed), (until, _, length) in zip(speeds, run_times, strict=True):
            end = question.end if until == FOREVER else until
            start_heading = heading + turn_rate * (end - length)
            segments.append(MotionSegment(end, start_speed, end_speed, start_heading, turn_rate))
        last_heading = heading + turn_rate * question.end
        segments.append(MotionSegment(FOREVER, last_speed, last_speed, last_heading, turn_rate))
        if question.start > 1 and rng.random() < 0.5:  # it starts to move only half a second before the span
            segments[0] = replace(segments[0], until=question.start - 0.5, start_speed=0.0, end_speed=0.0)
            segments.insert(1, MotionSegment(question.start, first_speed, first_speed, heading, turn_rate))
    return place_to_pass(replace(body, segments=tuple(segments)), point, middle)


def _sample_pushed_subject(rng: Generator, scene: Scene, question: QuestionSpec, body: Body) -> Body:
    """Make the subject a free body that is pushed once, shortly before the span, and slides or rolls on."""
    release_time = max(0.0, question.start - rng.choice([0.25, 0.5]))
    point = sample_visible_point(rng, scene, question.start, body.half_height)
    angle = rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(1.2, 2.4)
    slide_time = rng.uniform(0.6, 1.2) * (question.end - question.start)
    return replace(
        body,
        segments=(),
        start=(*point.tolist(), body.half_height),
        velocity=(speed * float(np.cos(angle)), speed * float(np.sin(angle)), 0.0),
        release_time=float(release_time),
        friction=float(speed / (9.81 * slide_time)),  # decelerates to rest in `slide_time`
        bounce=0.2,
    )


def _sample_predictable_subject(
    rng: Generator, scene: Scene, question: QuestionSpec, spec: SceneSpec, words: str, agent_yaw: float, body: Body
) -> Body:
    """Give the subject of dir_pred its motion: in one direction for the last 1.5 s or so, if it moves at all."""
    turn_time = max(0.01, question.end - float(rng.uniform(1.4, 1.8)))
    point = sample_visible_point(rng, scene, question.end - 0.5, body.half_height)
    if words in (STAYS, *CAMERA_LIFTS):
        rests = words in CAMERA_LIFTS or rng.random() < 0.5
        speed = 0.0 if rests else _sample_speed(rng, spec.object_set, turn_time)
        heading = float(rng.uniform(-180, 180))
        segments = (MotionSegment(turn_time, speed, speed, heading), replace(AT_REST, heading=heading))
        return place_to_pass(replace(body, segments=segments, yaw=heading), point, question.end)
    heading = agent_yaw + 45 * MOVES_AROUND.index(words) + float(rng.uniform(-10, 10))
    speed = _sample_speed(rng, spec.object_set)
    heading_before = float(rng.uniform(-180, 180)) if rng.random() < 0.5 else heading
    speed_before = _sample_speed(rng, spec.object_set, turn_time)
    if body.shape in SHAPES_WITH_FRONT:
        turn_rate = float(rng.uniform(-25, 25))
        before = MotionSegment(turn_time, speed_before, speed_before, 0.0, turn_rate)
        body = replace(body, yaw=heading - turn_rate * np.ceil(turn_time * FPS) / FPS)
        segments = (before, MotionSegment(FOREVER, speed, speed))
    else:
        before = MotionSegment(turn_time, speed_before, speed_before, heading_before)
        segments = (before, MotionSegment(FOREVER, speed, speed, heading))
    return place_to_pass(replace(body, segments=segments), point, question.end - 0.4)


def _sample_compared_pair(
    rng: Generator, scene: Scene, question: QuestionSpec, spec: SceneSpec, wanted: Sequence[str]
) -> list[Body]:
    """Draw the subject and the other object of spd_comp."""
    first, second, _ = CHANGE_WORDS["spd_comp"]
    middle, speed_pairs = (question.start + question.end) / 2, []
    for _, words, _ in _sample_run_times(rng, question, wanted):
        fast = _sample_speed(rng, spec.object_set, question.end - question.start, 5.0)
        slow = 0.0 if rng.random() < 0.3 else fast / rng.uniform(1.7, 2.6)
        speed_pairs.append((fast, slow) if words == first else (slow, fast) if words == second else (fast, fast))
    run_times, bodies = _sample_run_times(rng, question, wanted), []
    for which, i in enumerate((question.subject, question.other)):
        body, heading = sample_body(rng, spec, i), float(rng.uniform(-180, 180))
        speeds = [pair[which] for pair in speed_pairs]
        path_length = sum(speed * length for speed, (_, _, length) in zip(speeds, run_times, strict=True))
        turn_rate, begin, segments = _sample_turn_rate(rng, path_length), 0.0, []
        for speed, (until, _, _) in zip(speeds, run_times, strict=True):
            segments.append(MotionSegment(until, speed, speed, heading + turn_rate * begin, turn_rate))
            begin = until
        point = sample_visible_point(rng, scene, middle, body.half_height)
        bodies.append(place_to_pass(replace(body, segments=tuple(segments)), point, middle))
    return bodies


def _sample_across_view(
    rng: Generator, question: QuestionSpec, spec: SceneSpec, wanted: Sequence[str], scene: Scene
) -> list[Body]:
    """Draw the subject of dir seen from the camera: it goes from one part of the frame to another, or is at rest."""
    subject = sample_body(rng, spec, question.subject)
    columns = []
    for words in wanted:
        left, right, middle = rng.uniform(0.06, 0.26), rng.uniform(0.74, 0.94), rng.uniform(0.35, 0.65)
        columns.append(left if "left" in words else right if "right" in words else middle)
    rows = [rng.uniform(0.45, 0.92) if "below" in words else rng.uniform(0.25, 0.6) for words in wanted]
    begin = visible_point(scene, round(question.start * FPS), columns[0], rows[0], subject.half_height)
    end = visible_point(scene, round(question.end * FPS), columns[-1], rows[-1], subject.half_height)
    if begin is None or end is None:
        return []
    rests = len(wanted) == 1 and rng.random() < 0.5
    return [_move_between(subject, begin, begin if rests else end, question)]


def _sample_around_agent(
    rng: Generator, question: QuestionSpec, spec: SceneSpec, wanted: Sequence[str], scene: Scene
) -> list[Body]:
    """Draw the subject and the agent of dir seen from an object: the subject crosses to another direction, or the
    agent turns."""
    length, subject = question.end - question.start, sample_body(rng, spec, question.subject)
    agent = sample_body(rng, spec, question.agent, segments=(AT_REST,))
    centre = sample_visible_point(rng, scene, question.start, agent.half_height)
    agent = replace(agent, start=(*centre.tolist(), agent.half_height))
    angles = [45 * PLACES_AROUND.index(words) for words in wanted]
    # "front" is said of a narrower range of angles than "front left".
    angles = [angle + rng.uniform(-1, 1) * (8 if angle % 90 == 0 else 20) for angle in angles]
    change = (angles[-1] - angles[0] + 180) % 360 - 180
    radii = rng.uniform(1.4, 2.8, 2)
    if question.relative and rng.random() < 0.5:
        turn_rate = float(-change / length)
        point = centre + radii[0] * unit_vector(agent.yaw + turn_rate * question.start + angles[0])
        agent = replace(agent, segments=(MotionSegment(FOREVER, 0.0, 0.0, 0.0, turn_rate),))
        return [replace(subject, segments=(AT_REST,), start=(*point.tolist(), subject.half_height)), agent]
    begin, end = (centre + radii[k] * unit_vector(agent.yaw + angles[0] + k * change) for k in range(2))
    return [_move_between(subject, begin, end, question), agent]


def _move_between(body: Body, begin: np.ndarray, end: np.ndarray, question: QuestionSpec) -> Body:
    """Let the body go straight from `begin` to `end` during the span."""
    velocity = (end - begin) / (question.end - question.start)
    speed, heading = float(np.linalg.norm(velocity)), float(np.degrees(np.arctan2(velocity[1], velocity[0])))
    if speed < 0.02:
        return replace(body, segments=(AT_REST,), start=(*begin.tolist(), body.half_height))
    body = replace(body, segments=(MotionSegment(FOREVER, speed, speed, heading),), yaw=heading)
    return place_to_pass(body, begin, question.start)


# The motion of the other objects


def sample_unasked_body(rng: Generator, scene: Scene, spec: SceneSpec, i: int, at_rest: bool) -> Body:
    """Draw an object that the question does not ask about: it is at rest, driven, pushed, or falls."""
    body = sample_body(rng, spec, i)
    time = float(rng.uniform(0, scene.duration))
    point = sample_visible_point(rng, scene, time, body.half_height)
    kinds = ["rest", "drive", "drive", "push", "fall"] if spec.level > 1 else ["rest", "drive"]
    kind = "rest" if at_rest else str(rng.choice(kinds))
    if kind == "rest" or (body.shape in SHAPES_WITH_FRONT and kind != "drive"):
        return replace(body, segments=(AT_REST,), start=(*point.tolist(), body.half_height))
    if kind == "drive":
        speed = _sample_speed(rng, spec.object_set, scene.duration, 5.0)
        turn_rate = float(rng.uniform(-25, 25)) if spec.level > 1 else 0.0
        segment = MotionSegment(FOREVER, speed, speed, body.yaw, turn_rate)
        return place_to_pass(replace(body, segments=(segment,)), point, time)
    release_time = float(rng.uniform(0, max(0.1, scene.duration - 1.5)))
    friction, bounce = float(rng.uniform(0.05, 0.3)), float(rng.uniform(0.2, 0.9))
    body = replace(body, release_time=release_time, friction=friction, bounce=bounce)
    if kind == "fall":
        return replace(body, start=(*point.tolist(), body.half_height + float(rng.uniform(0.8, 2.2))))
    velocity = (*(unit_vector(body.yaw) * rng.uniform(0.8, 2.2)).tolist(), 0.0)
    return replace(body, start=(*point.tolist(), body.half_height), velocity=velocity)


def _aim_push(rng: Generator, question: QuestionSpec, bodies: dict[int, Body]) -> None:
    """Push an object that the question does not ask about toward another one, to hit it during the span.

    The object hit is one at rest that is not asked about either, and becomes free; if there is none, it is any driven
    object.
    """
    asked = (question.subject, question.other, question.agent)
    unasked = [i for i in bodies if i not in asked and bodies[i].shape not in SHAPES_WITH_FRONT]
    if not unasked:
        return
    i = int(rng.choice(unasked))
    resting = [j for j in unasked if j != i and bodies[j].segments == (AT_REST,)]
    driven = [j for j in bodies if j != i and bodies[j].segments]
    if not driven:
        return
    j = int(rng.choice(resting or driven))
    hit_time = float(rng.uniform(max(question.start, 0.8), question.end - 0.2))
    drawn = rng.uniform(1.2, 2.2), rng.uniform(0.5, 1.2), rng.uniform(-180, 180), rng.uniform(0.03, 0.1)
    speed, gap, heading, friction = map(float, drawn)
    target, velocities = bodies[j], servo_targets(bodies[j], round(hit_time * FPS) + 1)[0]
    point = np.array(target.start[:2]) + velocities[:-1].sum(0) / FPS
    if resting:
        bodies[j] = replace(target, segments=(), friction=friction, bounce=0.4)
    x, y = point - (gap + bodies[i].footprint_radius + target.footprint_radius) * unit_vector(heading)
    bodies[i] = replace(
        bodies[i],
        segments=(),
        start=(float(x), float(y), bodies[i].half_height),
        release_time=max(0.0, hit_time - gap / (0.85 * speed)),  # friction has slowed it by then
        velocity=(*(speed * unit_vector(heading)).tolist(), 0.0),
        friction=friction,
        bounce=0.4,
    )
