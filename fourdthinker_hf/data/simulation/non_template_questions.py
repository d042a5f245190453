"""DSR-Sim's 13th sub-task, non_temp: questions without a template, in turn.

| kind | question | refused unless |
| --- | --- | --- |
| camera | how does the camera move | one motion, or one pair, throughout |
| colour, mover | which colour, which object is the one that moves | it goes 0.6 m or more, all others 0.03 m or less |
| count | how many objects move | each goes 0.6 m or more, or 0.03 m or less |
| falls | which object falls | it drops by 0.5 m or more, nothing else by 0.05 m |
| bumps | which object does X bump into | only that one starts to move, while X is at most 0.3 m from touching it |
| nearest | which object is nearest to the camera at the end | the next one is 25% further or more |
"""

from dataclasses import replace

import numpy as np

from ..vocabulary import CAMERA_MOTION_PAIRS, CAMERA_MOTIONS, STATIC_CAMERA
from .cameras import STILL, camera_move, camera_moves
from .physics import predict
from .rendering import FPS, Truth
from .scene_sampling import REST, Cast, bystander, empty_world, make_body, passing, somewhere, unit
from .scenes import SPLITS, Body, Leg, World

VARIED = {
    1: ("camera", "colour", "mover", "count"),
    2: ("camera", "colour", "mover", "count", "falls", "bumps", "nearest"),
}
VARIED[3] = VARIED[2]
COUNTS = ("none", "one", "two", "three")
MOVES, RESTS = 0.6, 0.03  # m
DROPS, LEVEL = 0.5, 0.05  # m
TOUCHES, STARTS = 0.3, 0.25  # m, m/s
NEARER = 1.25


def classes(kind: str, level: int, split: str) -> list[str]:
    """The answers a kind has; empty if they are the names of a scene's objects."""
    if kind == "camera":
        pairs = [f"{a} and {b}" for a, b in CAMERA_MOTION_PAIRS] if level > 1 else []
        return [STATIC_CAMERA, *CAMERA_MOTIONS, *pairs]
    return {"colour": list(SPLITS[split].colours), "count": list(COUNTS)}.get(kind, [])


def cast_for(rng: np.random.Generator, kind: str, word: str | None, level: int, split: str) -> Cast:
    """Names and length; answers and distractors come from the same names, so only plain things where they fall."""
    kit = SPLITS[split]
    most = min({1: 3, 2: 4, 3: 6}[level], len(kit.colours))
    total = 3 if kind == "count" else int(rng.integers(2 if level == 1 else 3, most + 1))
    shapes = kit.plain if kind in ("falls", "bumps") else kit.plain + kit.fronted
    names = [str(rng.choice(shapes)) for _ in range(total)]
    colours = rng.permutation(list(kit.colours)).tolist()
    if kind == "colour":
        colours = [word, *(colour for colour in colours if colour != word)]
    duration = 4.0 if level == 1 else float(rng.integers(5, 11) if level == 2 else rng.integers(2, 21))
    if split == "unseen" and level > 1:
        duration = min(duration, 5.0)
    return Cast(tuple(zip(colours[:total], names, strict=True)), duration, level, split)


def _walker(rng: np.random.Generator, world: World, cast: Cast, i: int) -> Body:
    """A driven body that covers 1 to 3.5 m, part of the time."""
    body, time = make_body(rng, cast, i), float(rng.uniform(0.3, 0.7)) * cast.duration
    low, high = cast.kit.speeds
    pace = float(rng.uniform(low, high))
    long = min(cast.duration, rng.uniform(1.0, 3.5) / pace)
    begin = time - long / 2
    legs = (
        Leg(max(begin, 1e-3), 0, 0, body.yaw),
        Leg(begin + long, pace, pace, body.yaw),
        replace(REST, course=body.yaw),
    )
    return passing(replace(body, legs=legs), somewhere(rng, world, time, body.half), time)


def _rest(rng: np.random.Generator, world: World, cast: Cast, i: int) -> Body:
    body = make_body(rng, cast, i, legs=(REST,))
    point = somewhere(rng, world, cast.duration / 2, body.half)
    return replace(body, start=(*point.tolist(), body.half))


def propose(rng: np.random.Generator, kind: str, word: str | None, cast: Cast) -> World:
    level, num = cast.level, len(cast.names)
    moves = STILL
    if kind == "camera":
        moves = (camera_move(rng, word.split(" and "), 1e3, cast.duration),)
    elif level > 1 and rng.random() < 0.7:
        moves = camera_moves(rng, cast.duration, 1 if level == 2 else int(rng.integers(1, 3)), 0.3)
    world = empty_world(rng, level, cast.duration, moves)
    if kind in ("camera", "nearest"):
        still = level == 1
        return replace(world, things=tuple(bystander(rng, world, cast, i, still) for i in range(num)))
    movers = {"count": COUNTS.index(word) if kind == "count" else 0, "colour": 1, "mover": 1}.get(kind, 0)
    things = [(_walker if i < movers else _rest)(rng, world, cast, i) for i in range(num)]
    if kind == "falls":
        x, y, z = things[0].start
        release = float(rng.uniform(0, max(0.1, cast.duration - 1.2)))
        things[0] = replace(
            things[0],
            legs=(),
            start=(x, y, z + float(rng.uniform(0.9, 2.2))),
            release=release,
            bounce=float(rng.uniform(0.2, 0.9)),
        )
    elif kind == "bumps":
        things[:2] = _collision(rng, things, cast)
    return replace(world, things=tuple(things))


def _collision(rng: np.random.Generator, things: list[Body], cast: Cast) -> list[Body]:
    """The first is driven into the second, which is free."""
    mover, hit = things[:2]
    course, pace = float(rng.uniform(-180, 180)), float(rng.uniform(max(0.8, cast.kit.speeds[0]), cast.kit.speeds[1]))
    ahead = float(rng.uniform(0.8, 2.0))  # m before they meet
    touch = mover.reach + hit.reach
    x, y = np.array(hit.start[:2]) - (touch + ahead) * unit(course)
    begin = float(rng.uniform(0, max(0.05, cast.duration - (ahead + 0.8) / pace - 0.3)))
    stop = begin + (ahead + 0.5) / pace
    legs = (Leg(max(begin, 1e-3), 0, 0, course), Leg(stop, pace, pace, course), replace(REST, course=course))
    mover = replace(mover, legs=legs, yaw=course, start=(float(x), float(y), mover.half))
    return [mover, replace(hit, legs=(), friction=float(rng.uniform(0.05, 0.25)), bounce=0.3)]


def travelled(truth: Truth, frames: int) -> np.ndarray:
    """How far each object gets from where it starts, m, (n,)."""
    path = truth.positions[:frames]
    return np.linalg.norm(path - path[:1], axis=-1).max(0)


def judge(kind: str, world: World, truth: Truth) -> str | None:
    """The answer that the state gives, or None where it is ambiguous."""
    names, frames = [thing.name for thing in world.things], world.num_frames
    if kind == "camera":
        return " and ".join(world.moves[0].names)
    if kind == "nearest":
        away = np.linalg.norm(truth.positions[frames - 1] - truth.camera_positions[frames - 1], axis=-1)
        order = np.argsort(away)
        return names[order[0]] if away[order[1]] >= NEARER * away[order[0]] else None
    if kind == "falls":
        drop = truth.positions[0, :, 2] - truth.positions[:frames, :, 2].min(0)
        fallen = np.nonzero(drop >= DROPS)[0]
        return names[fallen[0]] if len(fallen) == 1 and np.sort(drop)[-2] < LEVEL else None
    far = travelled(truth, frames)
    if kind == "bumps":
        return _bumped(truth, world, far)
    moving = np.nonzero(far >= MOVES)[0]
    if ((far > RESTS) & (far < MOVES)).any():
        return None
    if kind == "count":
        return COUNTS[len(moving)]
    if len(moving) != 1:
        return None
    return world.things[moving[0]].colour if kind == "colour" else names[moving[0]]


def _bumped(truth: Truth, world: World, far: np.ndarray) -> str | None:
    others = [i for i in range(1, len(far)) if far[i] > RESTS]
    if len(others) != 1 or far[others[0]] < 0.2:
        return None
    hit = others[0]
    fast = np.linalg.norm(truth.velocities[: world.num_frames, hit], axis=-1) > STARTS
    if not fast.any():
        return None
    begin = int(fast.argmax())
    gap = np.linalg.norm(truth.positions[begin, 0] - truth.positions[begin, hit])
    near = gap < world.things[0].reach + world.things[hit].reach + TOUCHES
    return world.things[hit].name if near and begin > 0.3 * FPS else None


def wording(kind: str, names: list[str]) -> str:
    return {
        "camera": "How does the camera move?",
        "colour": "What colour is the object that moves?",
        "mover": "Which object moves?",
        "count": "How many of the objects move?",
        "falls": "Which object falls down?",
        "bumps": f"Which object does the {names[0]} bump into?",
        "nearest": "Which object is nearest to the camera at the end?",
    }[kind]


def guess(kind: str, world: World) -> str | None:
    """The answer as predicted; what falls or is bumped into cannot be, but is the one that was meant to."""
    if kind in ("falls", "bumps"):
        return world.things[kind == "bumps"].name
    return judge(kind, world, predict(world))


def to_be_seen(kind: str, right: str, world: World, every: int) -> dict[int, list[int]]:
    """The objects without which a person could not answer, and the frames in which they should be seen."""
    names = [thing.name for thing in world.things]
    frames = [*range(0, world.num_frames, every), world.num_frames - 1]
    if kind == "nearest":
        return {names.index(right): frames[-1:]}
    number = {"camera": 0, "falls": 1, "bumps": 2}.get(kind, len(names))
    return dict.fromkeys(range(number), frames)


def distractors(rng: np.random.Generator, kind: str, right: str, world: World, cast: Cast) -> list[str]:
    """Wrong answers: the other classes, or other objects of the scene and, to make three, what is not there."""
    if known := classes(kind, cast.level, cast.split):
        return known
    asked = world.things[0].name if kind == "bumps" else None
    names = [thing.name for thing in world.things if thing.name not in (right, asked)]
    used = {thing.colour for thing in world.things}
    shapes = cast.kit.plain if kind in ("falls", "bumps") else cast.kit.plain + cast.kit.fronted
    spare = [colour for colour in rng.permutation(list(cast.kit.colours)).tolist() if colour not in used]
    while len(names) < 3:
        colour = spare.pop() if spare else str(rng.choice(sorted(used)))
        name = f"{colour} {rng.choice(shapes)}"
        if name not in (right, asked, *names):
            names.append(name)
    return names
