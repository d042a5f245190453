"""Stages scenes for template questions: who is asked about, and motions that are likely to give the wanted answer.

`plan` draws what a question says (names, times, agent) before the answer is known, so its wording tells nothing; then
`stage` draws worlds that may show the wanted runs. Being likely is all that is asked here: `questions.answer` judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..vocabulary import CHANGE_WORDS, STATIC_CAMERA
from .cameras import STILL, camera_moves, camera_path
from .physics import drive
from .questions import RING, STAYS, WAY_RING, Ask
from .rendering import FPS
from .scenes import CAMERA, FRONTED, SPLITS, TEXTURES, Body, CameraMove, Kit, Leg, World

REST = Leg(1e3, 0.0, 0.0)
LIFTS = {"down": "pedestal up", "up": "pedestal down"}
AIMED = {1: 0.0, 2: 0.2, 3: 0.1}  # share of scenes with a push aimed at something: about one clip in five has a hit


@dataclass(frozen=True)
class Cast:
    """Colour and shape of every object, the asked ones first; and the clip's length in s."""

    names: tuple[tuple[str, str], ...]
    duration: float
    level: int
    split: str

    @property
    def kit(self) -> Kit:
        return SPLITS[self.split]


def span_times(rng: np.random.Generator, level: int, split: str, kind: str) -> tuple[float, float, float]:
    """Length of the clip, start and end of the span, in s; fast things are asked about for 3 s."""
    if level == 1:
        return 4.0, float(rng.choice([0, 0.5, 1])), float(rng.choice([3, 3.5]))
    duration = float(rng.integers(5, 11) if level == 2 else rng.integers(2 if kind == "dir_pred" else 4, 21))
    least = int(min(3, duration - 1))
    long = least if split == "unseen" else int(rng.integers(least, min(duration, 13)))
    start = float(rng.integers(0, duration - long))
    return duration, start, start + long


def plan(rng: np.random.Generator, task: str, level: int, split: str) -> tuple[Ask, Cast]:
    """What a question of `task` is about."""
    kit, kind = SPLITS[split], task[4:]
    duration, start, end = span_times(rng, level, split, kind)
    agent_moves_alone = kind == "ori" and rng.random() < 0.25
    by_camera = rng.random() < (0.5 if kind != "spd" else 0.7)
    paired = kind == "spd_comp" or kind == "dis" and rng.random() < 0.4
    shapes = [] if agent_moves_alone else [str(rng.choice(kit.fronted if kind == "ori" else kit.plain + kit.fronted))]
    x = CAMERA if agent_moves_alone else 0
    y = None
    if paired:
        y = len(shapes)
        shapes.append(str(rng.choice(kit.plain + kit.fronted)))
    by_camera = by_camera or paired and kind == "dis"
    if x == CAMERA and task.startswith("rel"):
        by_camera = False
    agent = CAMERA if by_camera else len(shapes)
    if not by_camera:
        shapes.append(str(rng.choice(kit.fronted)))
    most = min({1: 3, 2: 4, 3: 6}[level], len(kit.colours))
    total = int(rng.integers(max(2, len(shapes)), max(most, len(shapes)) + 1))
    shapes += rng.choice(kit.plain + kit.fronted, total - len(shapes)).tolist()
    colours = rng.permutation(list(kit.colours))[:total].tolist()
    if kind == "dir_pred":
        start, end = max(0.0, duration - 2.0), duration - 1 / FPS
    at = float(rng.integers(0, int(start) + 1))
    cast = Cast(tuple(zip(colours, map(str, shapes), strict=True)), duration, level, split)
    return Ask(task, agent, x, y, at, start, end), cast


# The camera


def empty_world(
    rng: np.random.Generator, level: int, duration: float, moves: tuple[CameraMove, ...], low: bool = False
) -> World:
    """A world without things; the view is that of plain.py at level 1 and varies at the others, from near the ground
    if `low`."""
    if level == 1:
        height, pitch, fov = rng.uniform(3.3, 4.0), rng.uniform(30, 40), rng.uniform(49, 54)
    else:
        height, fov = rng.uniform(0.8, 1.2) if low else rng.uniform(1.6, 4.5), rng.uniform(45, 68)
        pitch = np.degrees(np.arctan(height / rng.uniform(4.5, 7.5)))
    pivot = height / np.tan(np.radians(pitch))
    view = {"height": float(height), "pitch": float(pitch), "fov": float(fov), "pivot": float(pivot)}
    return World((), moves, duration, level, **view, phase=float(rng.random()), look=int(rng.integers(2**31)))


def _clip_camera(rng: np.random.Generator, ask: Ask, cast: Cast, wanted: Sequence[str]) -> tuple[CameraMove, ...]:
    if ask.x == CAMERA:
        return _turning_camera(rng, ask, wanted)
    if wanted[0] in LIFTS:  # what rests sinks for a camera that rises
        rise = CameraMove(1e3, (LIFTS[wanted[0]],), (float(rng.uniform(0.4, 0.6)),))
        return (CameraMove(max(0.01, ask.end - float(rng.uniform(1.4, 1.8))), (STATIC_CAMERA,), (0.0,)), rise)
    alone = ask.follows and ask.agent == CAMERA  # level 1: the camera or the objects
    chance = {1: 0.4 * alone, 2: 0.75, 3: 0.85}[cast.level]
    if rng.random() >= chance:
        return STILL
    parts = 1 if cast.level < 3 else int(rng.integers(1, 3))
    gentle = 0.5 if ask.follows and ask.agent == CAMERA and cast.level > 1 else 1.0
    pair = {1: 0.0, 2: 0.3, 3: 0.5}[cast.level]
    return camera_moves(rng, cast.duration, parts, pair, gentle)


def _turning_camera(rng: np.random.Generator, ask: Ask, wanted: Sequence[str]) -> tuple[CameraMove, ...]:
    left, right, _ = CHANGE_WORDS["ori"]
    moves = []
    for until, word, length in _phases(rng, ask, wanted):
        if word == left or word == right:
            names, rates = ("pan left" if word == left else "pan right",), (float(rng.uniform(30, 45) / length),)
        else:
            names, rates = (STATIC_CAMERA,), (0.0,)
        moves.append(CameraMove(min(until, ask.end + 0.5), names, rates))
    return (*moves, *STILL)


# Things that are asked about


def _phases(rng: np.random.Generator, ask: Ask, wanted: Sequence[str]) -> list[tuple[float, str, float]]:
    """(until s, word, length s) of the wanted runs over the span; the first holds before it, the last after it."""
    cuts = np.cumsum(rng.uniform(0.7, 1.3, len(wanted)))
    ends = ask.start + (ask.end - ask.start) * cuts / cuts[-1]
    lengths = np.diff(np.concatenate([[ask.start], ends]))
    ends[-1] = 1e3
    return list(zip(ends.tolist(), wanted, lengths.tolist(), strict=True))


def make_body(rng: np.random.Generator, cast: Cast, i: int, **given) -> Body:
    colour, shape = cast.names[i]
    low, high = (0.42, 0.52) if cast.level == 1 else (0.28, 0.55)
    half = float(rng.uniform(low, high))
    if shape in FRONTED:
        half *= 0.85
    texture = "plain" if cast.level == 1 else str(rng.choice(TEXTURES))
    yaw = float(rng.uniform(-180, 180))
    return Body(colour, shape, half, **{"yaw": yaw, "start": (0.0, 0.0, half), "texture": texture, **given})


def point_at(world: World, frame: int, u: float, v: float, z: float) -> np.ndarray | None:
    """The point (x, y) at height z that shows at (u, v), 0 to 1 from the top left; None if too far."""
    eye, rotation = camera_path(world)
    focal = 1 / 2 / np.tan(np.radians(world.fov / 2))
    ray = rotation[frame] @ np.array([(u - 0.5) / focal, (0.5 - v) / focal, -1.0])
    if ray[2] > -0.02:
        return None
    away = ray[:2] * (z - eye[frame, 2]) / ray[2]
    return eye[frame, :2] + away if np.linalg.norm(away) < (7.5 if world.level == 1 else 10) else None


def somewhere(rng: np.random.Generator, world: World, time: float, z: float) -> np.ndarray:
    frame = min(round(time * FPS), world.num_frames - 1)
    for _ in range(10):
        if (point := point_at(world, frame, rng.uniform(0.12, 0.88), rng.uniform(0.3, 0.9), z)) is not None:
            return point
    return np.array([0.0, world.pivot])


def passing(body: Body, point: np.ndarray, time: float) -> Body:
    """The driven body so placed that it passes `point` at `time` s."""
    frame = round(time * FPS)
    velocity = drive(body, frame + 1)[0][:frame]
    x, y = point - velocity.sum(0) / FPS
    return replace(body, start=(float(x), float(y), body.half))


def _speeds(rng: np.random.Generator, kit: Kit, words: Sequence[str]) -> list[tuple[float, float]]:
    """Speeds at both ends of each phase."""
    up, down, _ = CHANGE_WORDS["spd"]
    low, high = (0.25, kit.speeds[1]) if kit.speeds[0] < 1 else (0.6, kit.speeds[1])
    logs = [0.0]
    for word in words:
        logs.append(logs[-1] + (word == up) * rng.uniform(0.75, 1.2) - (word == down) * rng.uniform(0.75, 1.2))
    lowest, highest = min(logs), max(logs)
    shift = rng.uniform(np.log(low) - lowest, max(np.log(high) - highest, np.log(low) - lowest + 0.01))
    values = np.minimum(np.exp(np.array(logs) + shift), high)
    if rng.random() < 0.35:  # from or to rest
        values[np.array(logs) == lowest] = 0.0
    return list(zip(values[:-1].tolist(), values[1:].tolist(), strict=True))


def _bend(rng: np.random.Generator, length: float) -> float:
    """deg/s that keep a path of `length` m within view."""
    return 0.0 if length < 3 else float(rng.choice([-1, 1]) * rng.uniform(20, 45))


def _cruise(rng: np.random.Generator, kit: Kit, length: float | None = None, far: float = 3.0) -> float:
    """A steady speed; over `length` s it covers `far` m at most where the kit allows."""
    low, high = kit.speeds
    if length:
        high = max(low, min(high, far / length))
        low = min(low, high) if kit.speeds[0] > 1 else min(0.25, high)
    return float(rng.uniform(low, high))


def _asked_driver(
    rng: np.random.Generator,
    world: World,
    ask: Ask,
    cast: Cast,
    wanted: Sequence[str],
    body: Body,
    toward: np.ndarray | None,
) -> Body:
    """Legs of x for dis, ori, spd; `toward` is what a distance is measured to."""
    middle = (ask.start + ask.end) / 2
    point = somewhere(rng, world, middle, body.half)
    phases, course = _phases(rng, ask, wanted), float(rng.uniform(-180, 180))
    legs = []
    if ask.kind == "dis":
        away = point - toward
        course = float(np.degrees(np.arctan2(away[1], away[0])) + rng.uniform(-30, 30))
        sign = dict(zip(CHANGE_WORDS["dis"], (1, -1, 0), strict=True))
        for until, word, length in phases:
            legs.append(Leg(until, *(sign[word] * _cruise(rng, cast.kit, length),) * 2, course))
        body = replace(body, yaw=course)
    elif ask.kind == "ori":
        sign = dict(zip(CHANGE_WORDS["ori"], (1, -1, 0), strict=True))
        pace = 0.0 if rng.random() < 0.4 else _cruise(rng, cast.kit, ask.end - ask.start)
        for until, word, length in phases:
            legs.append(Leg(until, pace, pace, 0.0, float(sign[word] * rng.uniform(45, 110) / length)))
    else:
        speeds = _speeds(rng, cast.kit, wanted)
        turn = _bend(rng, sum((a + b) / 2 * p[2] for (a, b), p in zip(speeds, phases, strict=True)))
        legs.append(Leg(max(ask.start, 1e-3), speeds[0][0], speeds[0][0], course, turn))
        for (begin, end), (until, _, length) in zip(speeds, phases, strict=True):
            last = until > 100
            stop = ask.end if last else until
            legs.append(Leg(stop, begin, end, course + turn * (stop - length), turn))
        legs.append(Leg(1e3, speeds[-1][1], speeds[-1][1], course + turn * ask.end, turn))
        if ask.start > 1 and rng.random() < 0.5:
            legs[0] = replace(legs[0], until=ask.start - 0.5, begin=0.0, end=0.0)
            legs.insert(1, Leg(ask.start, speeds[0][0], speeds[0][0], course, turn))
    return passing(replace(body, legs=tuple(legs)), point, middle)


def _pushed(rng: np.random.Generator, world: World, ask: Ask, body: Body) -> Body:
    """A free body that is pushed once, at the start of the span or before it, and slides or rolls on."""
    release = max(0.0, ask.start - rng.choice([0.25, 0.5]))
    point, course = somewhere(rng, world, ask.start, body.half), rng.uniform(0, 2 * np.pi)
    velocity = (float(np.cos(course)), float(np.sin(course)), 0.0)
    pace = rng.uniform(1.2, 2.4)
    length = rng.uniform(0.6, 1.2) * (ask.end - ask.start)
    friction = pace / (9.81 * length)  # slides to rest after `length` s
    start = (*point.tolist(), body.half)
    velocity = tuple(pace * v for v in velocity)
    return replace(
        body, legs=(), start=start, velocity=velocity, release=float(release), friction=float(friction), bounce=0.2
    )


def _compared(rng: np.random.Generator, world: World, ask: Ask, cast: Cast, wanted: Sequence[str]) -> list[Body]:
    first, second, _ = CHANGE_WORDS["spd_comp"]
    middle, pairs = (ask.start + ask.end) / 2, []
    for _, word, _ in _phases(rng, ask, wanted):
        fast = _cruise(rng, cast.kit, ask.end - ask.start, 5.0)
        slow = 0.0 if rng.random() < 0.3 else fast / rng.uniform(1.7, 2.6)
        pairs.append((fast, slow) if word == first else (slow, fast) if word == second else (fast, fast))
    phases, made = _phases(rng, ask, wanted), []
    for i in (ask.x, ask.y):
        body, course = make_body(rng, cast, i), float(rng.uniform(-180, 180))
        length = sum(pair[i != ask.x] * p[2] for pair, p in zip(pairs, phases, strict=True))
        turn, begin, legs = _bend(rng, length), 0.0, []
        for pair, (until, _, _) in zip(pairs, phases, strict=True):
            legs.append(Leg(until, pair[i != ask.x], pair[i != ask.x], course + turn * begin, turn))
            begin = until
        made.append(passing(replace(body, legs=tuple(legs)), somewhere(rng, world, middle, body.half), middle))
    return made


def _predictable(
    rng: np.random.Generator, world: World, ask: Ask, cast: Cast, word: str, yaw: float, body: Body
) -> Body:
    """x for dir_pred: it goes one way from 1.5 s before the end, if it moves at all; `yaw` of the agent in degrees."""
    turn_at = max(0.01, ask.end - float(rng.uniform(1.4, 1.8)))
    point = somewhere(rng, world, ask.end - 0.5, body.half)
    if word in (STAYS, *LIFTS):
        first = 0.0 if word in LIFTS or rng.random() < 0.5 else _cruise(rng, cast.kit, turn_at)
        course = float(rng.uniform(-180, 180))
        legs = (Leg(turn_at, first, first, course), replace(REST, course=course))
        return passing(replace(body, legs=legs, yaw=course), point, ask.end)
    course = yaw + 45 * WAY_RING.index(word) + float(rng.uniform(-10, 10))
    pace = _cruise(rng, cast.kit)
    before = float(rng.uniform(-180, 180)) if rng.random() < 0.5 else course
    pace_before = _cruise(rng, cast.kit, turn_at)
    if body.shape in FRONTED:
        bend = float(rng.uniform(-25, 25))
        legs = (Leg(turn_at, pace_before, pace_before, 0.0, bend), Leg(1e3, pace, pace))
        body = replace(body, yaw=course - bend * np.ceil(turn_at * FPS) / FPS)
    else:
        legs = (Leg(turn_at, pace_before, pace_before, before), Leg(1e3, pace, pace, course))
    return passing(replace(body, legs=legs), point, ask.end - 0.4)


def _across_view(rng: np.random.Generator, ask: Ask, cast: Cast, wanted: Sequence[str], world: World) -> list[Body]:
    """x for dir seen from the camera: it goes from one part of the picture to another, or rests."""
    mover = make_body(rng, cast, ask.x)
    columns = []
    for word in wanted:
        left, right, middle = rng.uniform(0.06, 0.26), rng.uniform(0.74, 0.94), rng.uniform(0.35, 0.65)
        columns.append(left if "left" in word else right if "right" in word else middle)
    rows = [rng.uniform(0.45, 0.92) if "below" in word else rng.uniform(0.25, 0.6) for word in wanted]
    begin = point_at(world, round(ask.start * FPS), columns[0], rows[0], mover.half)
    end = point_at(world, round(ask.end * FPS), columns[-1], rows[-1], mover.half)
    if begin is None or end is None:
        return []
    return [_cross(mover, begin, begin if len(wanted) == 1 and rng.random() < 0.5 else end, ask)]


def _around_agent(rng: np.random.Generator, ask: Ask, cast: Cast, wanted: Sequence[str], world: World) -> list[Body]:
    """x and the agent for dir seen from an object: x crosses from one bearing to the next, or the agent turns."""
    long, mover = ask.end - ask.start, make_body(rng, cast, ask.x)
    agent = make_body(rng, cast, ask.agent, legs=(REST,))
    base = somewhere(rng, world, ask.start, agent.half)
    agent = replace(agent, start=(*base.tolist(), agent.half))
    angles = [45 * RING.index(word) for word in wanted]  # pure directions are narrower than diagonal ones
    angles = [angle + rng.uniform(-1, 1) * (8 if angle % 90 == 0 else 20) for angle in angles]
    swing = (angles[-1] - angles[0] + 180) % 360 - 180
    radii = rng.uniform(1.4, 2.8, 2)
    if ask.follows and rng.random() < 0.5:
        turn = float(-swing / long)
        point = base + radii[0] * unit(agent.yaw + turn * ask.start + angles[0])
        agent = replace(agent, legs=(Leg(1e3, 0.0, 0.0, 0.0, turn),))
        return [replace(mover, legs=(REST,), start=(*point.tolist(), mover.half)), agent]
    begin, end = (base + radii[k] * unit(agent.yaw + angles[0] + k * swing) for k in range(2))
    return [_cross(mover, begin, end, ask), agent]


def unit(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def _cross(body: Body, begin: np.ndarray, end: np.ndarray, ask: Ask) -> Body:
    """The body goes straight from `begin` to `end` during the span."""
    step = (end - begin) / (ask.end - ask.start)
    pace, course = float(np.linalg.norm(step)), float(np.degrees(np.arctan2(step[1], step[0])))
    if pace < 0.02:
        return replace(body, legs=(REST,), start=(*begin.tolist(), body.half))
    body = replace(body, legs=(Leg(1e3, pace, pace, course),), yaw=course)
    return passing(body, begin, ask.start)


# Others


def bystander(rng: np.random.Generator, world: World, cast: Cast, i: int, still: bool) -> Body:
    """A thing that nobody asks about: at rest, driven, pushed, rolling or falling."""
    body = make_body(rng, cast, i)
    time = float(rng.uniform(0, world.duration))
    point = somewhere(rng, world, time, body.half)
    fronted = body.shape in cast.kit.fronted
    kind = (
        "rest"
        if still
        else str(rng.choice(["rest", "drive", "drive", "push", "fall"] if cast.level > 1 else ["rest", "drive"]))
    )
    if kind == "rest" or (fronted and kind != "drive"):
        return replace(body, legs=(REST,), start=(*point.tolist(), body.half))
    if kind == "drive":
        pace = _cruise(rng, cast.kit, world.duration, 5.0)
        turn = float(rng.uniform(-25, 25)) if cast.level > 1 else 0.0
        return passing(replace(body, legs=(Leg(1e3, pace, pace, body.yaw, turn),)), point, time)
    release = float(rng.uniform(0, max(0.1, world.duration - 1.5)))
    given = {"release": release, "friction": float(rng.uniform(0.05, 0.3)), "bounce": float(rng.uniform(0.2, 0.9))}
    if kind == "fall":
        return replace(body, start=(*point.tolist(), body.half + float(rng.uniform(0.8, 2.2))), **given)
    return replace(
        body,
        start=(*point.tolist(), body.half),
        velocity=(*(unit(body.yaw) * rng.uniform(0.8, 2.2)).tolist(), 0.0),
        **given,
    )


def _aim(rng: np.random.Generator, ask: Ask, cast: Cast, made: dict[int, Body]) -> None:
    """Push a thing that nobody asks about during the span, at another such at rest, which is then free, or at any."""
    others = [i for i in made if i not in (ask.x, ask.y, ask.agent) and made[i].shape in cast.kit.plain]
    if not others:
        return
    i = int(rng.choice(others))
    resting = [j for j in others if j != i and made[j].legs == (REST,)]
    driven = [j for j in made if j != i and made[j].legs]
    if not driven:
        return
    j = int(rng.choice(resting or driven))
    meet = float(rng.uniform(max(ask.start, 0.8), ask.end - 0.2))
    drawn = rng.uniform(1.2, 2.2), rng.uniform(0.5, 1.2), rng.uniform(-180, 180), rng.uniform(0.03, 0.1)
    pace, gap, course, friction = map(float, drawn)
    target, step = made[j], drive(made[j], round(meet * FPS) + 1)[0]
    point = np.array(target.start[:2]) + step[:-1].sum(0) / FPS
    if resting:
        made[j] = replace(target, legs=(), friction=friction, bounce=0.4)
    x, y = point - (gap + made[i].reach + target.reach) * unit(course)
    release = max(0.0, meet - gap / (0.85 * pace))  # what rolls has lost some of its speed
    made[i] = replace(
        made[i],
        legs=(),
        start=(float(x), float(y), made[i].half),
        release=release,
        velocity=(*(pace * unit(course)).tolist(), 0.0),
        friction=friction,
        bounce=0.4,
    )


def stage(rng: np.random.Generator, ask: Ask, cast: Cast, wanted: Sequence[str]) -> World | None:
    """A world in which the answer to `ask` may be `wanted`, or None where the draw went wrong."""
    moves = _clip_camera(rng, ask, cast, wanted)
    low = ask.kind == "dir" and ask.agent == CAMERA and "below" not in wanted[0]
    world = empty_world(rng, cast.level, cast.duration, moves, low)
    still = cast.level == 1 and moves != STILL  # one motion at a time
    made: dict[int, Body] = {}
    if ask.kind == "dir":
        bodies = (_across_view if ask.agent == CAMERA else _around_agent)(rng, ask, cast, wanted, world)
        made.update(zip((ask.x, ask.agent), bodies, strict=False))
        if not bodies:
            return None
    elif ask.kind == "spd_comp":
        made.update(zip((ask.x, ask.y), _compared(rng, world, ask, cast, wanted), strict=True))
    for i in (ask.agent, ask.y):
        if i is not None and i != CAMERA and i not in made:
            moving = not still and ask.x != CAMERA and rng.random() < (0.3 if ask.follows or i == ask.y else 0.15)
            body = make_body(rng, cast, i, legs=(REST,))
            point = somewhere(rng, world, (ask.start + ask.end) / 2, body.half)
            if moving:
                pace = _cruise(rng, cast.kit, ask.end - ask.start, 2.0)
                turn = float(rng.uniform(-15, 15)) if cast.level > 1 else 0.0
                body = replace(body, legs=(Leg(1e3, pace, pace, body.yaw, turn),))
            made[i] = passing(body, point, (ask.start + ask.end) / 2)
    if ask.x != CAMERA and ask.x not in made:
        made[ask.x] = _main(rng, world, ask, cast, wanted, made)
    for i in range(len(cast.names)):
        if i not in made:
            made[i] = bystander(rng, world, cast, i, still)
        elif still:
            made[i] = replace(made[i], legs=(REST,))
    if rng.random() < AIMED[cast.level]:
        _aim(rng, ask, cast, made)
    return replace(world, things=tuple(made[i] for i in range(len(cast.names))))


def _main(
    rng: np.random.Generator, world: World, ask: Ask, cast: Cast, wanted: Sequence[str], made: dict[int, Body]
) -> Body:
    """x, where it is alone in what is asked."""
    body = make_body(rng, cast, ask.x)
    eye, rotation = camera_path(world)
    frame = min(round((ask.end if ask.follows else ask.at) * FPS), world.num_frames - 1)
    if ask.kind == "dir_pred":
        ahead = -rotation[frame, :, 2]
        yaw = float(np.degrees(np.arctan2(ahead[1], ahead[0]))) if ask.agent == CAMERA else made[ask.agent].yaw
        return _predictable(rng, world, ask, cast, wanted[0], yaw, body)
    slows = (
        "spd" == ask.kind
        and wanted[0] == CHANGE_WORDS["spd"][1]
        and len(wanted) <= 2
        and wanted[-1] != CHANGE_WORDS["spd"][0]
    )
    if slows and cast.level > 1 and body.shape in cast.kit.plain and rng.random() < 0.35:
        return _pushed(rng, world, ask, body)
    other = ask.y if ask.y is not None else ask.agent
    toward = eye[frame, :2] if other == CAMERA else np.array(made[other].start[:2])
    return _asked_driver(rng, world, ask, cast, wanted, body, toward)
