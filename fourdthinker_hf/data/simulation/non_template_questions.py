"""The questions of DSR-Sim's 13th task, non_temp, which follow no template: their wording, scenes and answers.

| kind | question | answered only if |
| --- | --- | --- |
| camera | how does the camera move | it has one motion, or one pair of motions, throughout |
| colour, mover | which colour, which object is it that moves | it moves 0.6 m or more, the others at most 0.03 m |
| count | how many objects move | each moves 0.6 m or more, or at most 0.03 m |
| falls | which object falls | it drops by 0.5 m or more, and nothing else by 0.05 m |
| bumps | which object does object 0 bump into | only that one starts to move, at most 0.3 m from touching object 0 |
| nearest | which object is nearest to the camera at the end | the next one is 25% farther away or more |
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from ..question_vocabulary import CAMERA_MOTION_PAIRS, CAMERA_MOTIONS, STATIC_CAMERA
from .camera_paths import CAMERA_AT_REST, sample_camera_move, sample_camera_moves
from .physics import predict_motion
from .rendering import FPS, Truth
from .scene_sampling import (
    MAX_OBJECTS,
    SceneSpec,
    place_to_pass,
    sample_body,
    sample_empty_scene,
    sample_unasked_body,
    sample_visible_point,
    unit_vector,
)
from .scenes import AT_REST, FOREVER, SPLITS, Body, MotionSegment, Scene

KINDS = {
    1: ("camera", "colour", "mover", "count"),
    2: ("camera", "colour", "mover", "count", "falls", "bumps", "nearest"),
}  # by level
KINDS[3] = KINDS[2]
COUNTS = ("none", "one", "two", "three")
MIN_MOVE, MAX_REST = 0.6, 0.03  # m
MIN_DROP, MAX_OTHER_DROP = 0.5, 0.05  # m
MAX_BUMP_GAP, MIN_BUMP_SPEED, MIN_BUMP_MOVE = 0.3, 0.25, 0.2  # m, m/s, m
NEAREST_RATIO = 1.25


def question_text(kind: str, names: list[str]) -> str:
    """The question, given the names of the scene's objects."""
    return {
        "camera": "How does the camera move?",
        "colour": "What colour is the object that moves?",
        "mover": "Which object moves?",
        "count": "How many of the objects move?",
        "falls": "Which object falls down?",
        "bumps": f"Which object does the {names[0]} bump into?",
        "nearest": "Which object is nearest to the camera at the end?",
    }[kind]


def possible_answers(kind: str, level: int, split: str) -> list[str]:
    """The answers that a kind may have; none if they are the names of a scene's objects."""
    if kind == "camera":
        pairs = [f"{a} and {b}" for a, b in CAMERA_MOTION_PAIRS] if level > 1 else []
        return [STATIC_CAMERA, *CAMERA_MOTIONS, *pairs]
    return {"colour": list(SPLITS[split].colours), "count": list(COUNTS)}.get(kind, [])


def _shapes(kind: str, split: str) -> tuple[str, ...]:
    """The shapes of a kind's objects. Where objects fall or bump, none has a front: the answer would stand out."""
    return SPLITS[split].shapes_without_front if kind in ("falls", "bumps") else SPLITS[split].shapes


def distractors(rng: Generator, kind: str, answer: str, scene: Scene, spec: SceneSpec) -> list[str]:
    """Wrong answers: the kind's other answers, or the scene's other objects and as many invented ones as needed."""
    if answers := possible_answers(kind, spec.level, spec.split):
        return answers
    asked = scene.objects[0].name if kind == "bumps" else None
    names = [body.name for body in scene.objects if body.name not in (answer, asked)]
    used = {body.colour for body in scene.objects}
    unused = [colour for colour in rng.permutation(list(spec.object_set.colours)).tolist() if colour not in used]
    while len(names) < 3:
        colour = unused.pop() if unused else str(rng.choice(sorted(used)))
        name = f"{colour} {rng.choice(_shapes(kind, spec.split))}"
        if name not in (answer, asked, *names):
            names.append(name)
    return names


# Scenes


def sample_scene_spec(rng: Generator, kind: str, wanted: str | None, level: int, split: str) -> SceneSpec:
    """Draw the objects and the length of a scene that may have the answer `wanted` (None: any)."""
    most = min(MAX_OBJECTS[level], len(SPLITS[split].colours))
    num_objects = 3 if kind == "count" else int(rng.integers(2 if level == 1 else 3, most + 1))
    shapes = [str(rng.choice(_shapes(kind, split))) for _ in range(num_objects)]
    colours = rng.permutation(list(SPLITS[split].colours)).tolist()
    if kind == "colour":
        colours = [wanted, *(colour for colour in colours if colour != wanted)]
    duration = 4.0 if level == 1 else float(rng.integers(5, 11) if level == 2 else rng.integers(2, 21))
    if split == "unseen" and level > 1:
        duration = min(duration, 5.0)
    return SceneSpec(tuple(zip(colours[:num_objects], shapes, strict=True)), duration, level, split)


def sample_scene(rng: Generator, kind: str, wanted: str | None, spec: SceneSpec) -> Scene:
    """Draw a scene in which the answer is likely to be `wanted` (None: any)."""
    level, num_objects = spec.level, len(spec.objects)
    moves = CAMERA_AT_REST
    if kind == "camera":
        moves = (sample_camera_move(rng, wanted.split(" and "), FOREVER, spec.duration),)
    elif level > 1 and rng.random() < 0.7:
        moves = sample_camera_moves(rng, spec.duration, 1 if level == 2 else int(rng.integers(1, 3)), 0.3)
    scene = sample_empty_scene(rng, level, spec.duration, moves)
    if kind in ("camera", "nearest"):
        bodies = [sample_unasked_body(rng, scene, spec, i, at_rest=level == 1) for i in range(num_objects)]
        return replace(scene, objects=tuple(bodies))
    num_movers = {"count": COUNTS.index(wanted) if kind == "count" else 0, "colour": 1, "mover": 1}.get(kind, 0)
    bodies = [
        (_sample_moving_body if i < num_movers else _sample_resting_body)(rng, scene, spec, i)
        for i in range(num_objects)
    ]
    if kind == "falls":
        x, y, z = bodies[0].start
        release_time = float(rng.uniform(0, max(0.1, spec.duration - 1.2)))
        bodies[0] = replace(
            bodies[0],
            segments=(),
            start=(x, y, z + float(rng.uniform(0.9, 2.2))),
            release_time=release_time,
            bounce=float(rng.uniform(0.2, 0.9)),
        )
    elif kind == "bumps":
        bodies[:2] = _drive_into(rng, *bodies[:2], spec)
    return replace(scene, objects=tuple(bodies))


def _sample_moving_body(rng: Generator, scene: Scene, spec: SceneSpec, i: int) -> Body:
    """Draw a driven body that moves 1 to 3.5 m during a part of the clip."""
    body, time = sample_body(rng, spec, i), float(rng.uniform(0.3, 0.7)) * spec.duration
    speed = float(rng.uniform(*spec.object_set.speeds))
    length = min(spec.duration, rng.uniform(1.0, 3.5) / speed)
    begin = time - length / 2
    segments = (
        MotionSegment(max(begin, 1e-3), 0, 0, body.yaw),
        MotionSegment(begin + length, speed, speed, body.yaw),
        replace(AT_REST, heading=body.yaw),
    )
    point = sample_visible_point(rng, scene, time, body.half_height)
    return place_to_pass(replace(body, segments=segments), point, time)


def _sample_resting_body(rng: Generator, scene: Scene, spec: SceneSpec, i: int) -> Body:
    body = sample_body(rng, spec, i, segments=(AT_REST,))
    point = sample_visible_point(rng, scene, spec.duration / 2, body.half_height)
    return replace(body, start=(*point.tolist(), body.half_height))


def _drive_into(rng: Generator, mover: Body, target: Body, spec: SceneSpec) -> tuple[Body, Body]:
    """Drive the first body into the second, which becomes free."""
    low, high = spec.object_set.speeds
    heading, speed = float(rng.uniform(-180, 180)), float(rng.uniform(max(0.8, low), high))
    approach = float(rng.uniform(0.8, 2.0))  # m before they touch
    touch_distance = mover.footprint_radius + target.footprint_radius
    x, y = np.array(target.start[:2]) - (touch_distance + approach) * unit_vector(heading)
    begin = float(rng.uniform(0, max(0.05, spec.duration - (approach + 0.8) / speed - 0.3)))
    segments = (
        MotionSegment(max(begin, 1e-3), 0, 0, heading),
        MotionSegment(begin + (approach + 0.5) / speed, speed, speed, heading),
        replace(AT_REST, heading=heading),
    )
    mover = replace(mover, segments=segments, yaw=heading, start=(float(x), float(y), mover.half_height))
    return mover, replace(target, segments=(), friction=float(rng.uniform(0.05, 0.25)), bounce=0.3)


# Answers


def find_answer(kind: str, scene: Scene, truth: Truth) -> str | None:
    """The answer that the truth gives, or None if it is ambiguous."""
    names, num_frames = [body.name for body in scene.objects], scene.num_frames
    if kind == "camera":
        return " and ".join(scene.camera_moves[0].names)
    if kind == "nearest":
        last = num_frames - 1
        distances = np.linalg.norm(truth.positions[last] - truth.camera_positions[last], axis=-1)
        first, second = np.argsort(distances)[:2]
        return names[first] if distances[second] >= NEAREST_RATIO * distances[first] else None
    if kind == "falls":
        drops = truth.positions[0, :, 2] - truth.positions[:num_frames, :, 2].min(0)
        fallen = np.nonzero(drops >= MIN_DROP)[0]
        return names[fallen[0]] if len(fallen) == 1 and np.sort(drops)[-2] < MAX_OTHER_DROP else None
    path = truth.positions[:num_frames]
    distances = np.linalg.norm(path - path[:1], axis=-1).max(0)  # (n,): how far each gets from where it starts
    if kind == "bumps":
        return _find_bumped(scene, truth, distances)
    if ((distances > MAX_REST) & (distances < MIN_MOVE)).any():
        return None
    moving = np.nonzero(distances >= MIN_MOVE)[0]
    if kind == "count":
        return COUNTS[len(moving)]
    if len(moving) != 1:
        return None
    return scene.objects[moving[0]].colour if kind == "colour" else names[moving[0]]


def _find_bumped(scene: Scene, truth: Truth, distances: np.ndarray) -> str | None:
    """The object that object 0 bumps into, if it alone moves besides object 0, and not before object 0 is there."""
    moved = [i for i in range(1, len(distances)) if distances[i] > MAX_REST]
    if len(moved) != 1 or distances[moved[0]] < MIN_BUMP_MOVE:
        return None
    target = moved[0]
    fast = np.linalg.norm(truth.velocities[: scene.num_frames, target], axis=-1) > MIN_BUMP_SPEED
    if not fast.any():
        return None
    first = int(fast.argmax())
    gap = np.linalg.norm(truth.positions[first, 0] - truth.positions[first, target])
    reach = scene.objects[0].footprint_radius + scene.objects[target].footprint_radius + MAX_BUMP_GAP
    return scene.objects[target].name if gap < reach and first > 0.3 * FPS else None


def expected_answer(kind: str, scene: Scene) -> str | None:
    """The answer before the physics has run: for falls and bumps, which cannot be predicted, the intended one."""
    if kind in ("falls", "bumps"):
        return scene.objects[kind == "bumps"].name
    return find_answer(kind, scene, predict_motion(scene))


def frames_to_see(kind: str, answer: str, scene: Scene, step: int) -> dict[int, list[int]]:
    """By object, the frames in which a person has to see it to be able to answer: one in `step`, and the last."""
    names = [body.name for body in scene.objects]
    frames = [*range(0, scene.num_frames, step), scene.num_frames - 1]
    if kind == "nearest":
        return {names.index(answer): frames[-1:]}
    num_objects = {"camera": 0, "falls": 1, "bumps": 2}.get(kind, len(names))
    return dict.fromkeys(range(num_objects), frames)
