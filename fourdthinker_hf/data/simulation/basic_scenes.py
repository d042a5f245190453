"""The plain scenes that the bundled checkpoint was trained on, with their four kinds of question: frozen.

A clip lasts 4 s at 8 fps and shows one motion: either the camera moves and the objects rest, or objects slide without
friction at a constant velocity under a still camera. World frame, metres: the camera is above the origin, looks along
+y and down, x is to its right, z up. The answer class is chosen first, round-robin over the index, and scenes are
drawn until one fits it with the margins below; question `index` of a task depends on (seed, task, index) alone.
README's table and the checkpoint rest on these: records and pixels stay as they are, and a test holds their hashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..vocabulary import OBJECT_DIRECTIONS
from .rendering import FPS, Question, Truth, load_mujoco, project

SIZE = 112  # pixels, both axes
NUM_FRAMES = 32
DURATION = NUM_FRAMES / FPS
STEPS_PER_FRAME = 10
BINS = 12
PATH_FRAMES = (2, 10, 18, 26)  # 0.25, 1.25, 2.25, 3.25 s: mean times of the pairs of 8 frames sampled at 2 fps
TARGET_FRAME = 28  # 3.5 s: the last of those 8 frames

COLOURS = {
    "red": (0.9, 0.05, 0.05),
    "green": (0.05, 0.75, 0.1),
    "blue": (0.1, 0.15, 0.95),
    "yellow": (0.95, 0.9, 0.05),
    "purple": (0.55, 0.05, 0.75),
    "orange": (1.0, 0.5, 0.0),
    "cyan": (0.0, 0.85, 0.9),
    "white": (1.0, 1.0, 1.0),
}
SHAPES = {"ball": 1.0, "cube": 1.25, "cylinder": 1.1, "cone": 1.0}  # outline radius over half size

CAMERA_MOTIONS = ("pan left", "pan right", "tilt up", "tilt down", "dolly in", "dolly out", "static")
SEEN_AS = (
    "everything moves right",
    "everything moves left",
    "everything moves down",
    "everything moves up",
    "everything spreads out",
    "everything closes in",
    "everything stays",
)
DISTANCES = ("it grows", "it shrinks", "it stays the same", "it shrinks, then grows")
TASKS = ("camera_motion", "object_direction", "faster_object", "distance_change")
ALL_TASKS = (*TASKS, "grounding")

# Margins of the answers, in degrees, ratios, metres.
DIRECTION_TOLERANCE = 15.0
SPEED_RATIO = 1.8
DISTANCE_RATIO = 1.3  # between the ends, for grows and shrinks
PASSING_RATIO = 1.4  # either end over the minimum, for shrinks then grows
DISTANCE_CHANGE = 0.8
SAME_DISTANCE = 0.05  # spread over mean
CLEARANCE = 0.95  # least projected distance over the sum of the projected radii: nothing is much hidden
MIN_BINS = 2  # what the picture must show of any change that the answer tells


@dataclass(frozen=True)
class Thing:
    """An object: `half` size in m, `start` (x, y) in m, `velocity` (x, y) in m/s, `yaw` in degrees."""

    colour: str
    shape: str
    half: float
    yaw: float
    start: tuple[float, float]
    velocity: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What is simulated: `pitch` (down), `fov` (vertical) in degrees; `amount` of motion in degrees or m per clip."""

    things: tuple[Thing, ...]
    motion: str
    amount: float
    phase: float  # when the camera is at its nominal pose, 0 to 1: drawn, so that a single frame tells little
    height: float
    pitch: float
    fov: float
    look: int  # seed of the ground, sky and light

    @property
    def focal(self) -> float:
        return SIZE / 2 / np.tan(np.radians(self.fov / 2))


# Scenes


def camera_path(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Camera positions (T, 3) and rotations (T, 3, 3); the motion is steady, at its nominal pose at `phase`."""
    amounts = scene.amount * (np.arange(NUM_FRAMES) / NUM_FRAMES - scene.phase)
    sign = -1.0 if scene.motion in ("pan right", "tilt down", "dolly out") else 1.0
    turn, tilt, dolly = (sign * amounts * (scene.motion.split()[0] == kind) for kind in ("pan", "tilt", "dolly"))
    yaw, down = np.radians(turn), np.radians(scene.pitch - tilt)
    right = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], -1)
    forward = np.stack([-np.sin(yaw) * np.cos(down), np.cos(yaw) * np.cos(down), -np.sin(down)], -1)
    positions = np.array([0.0, 0.0, scene.height]) + dolly[:, None] * forward
    return positions, np.stack([right, np.cross(right, forward), -forward], -1)


def _truth(scene: Scene, positions: np.ndarray, velocities: np.ndarray, quaternions: np.ndarray) -> Truth:
    """Project the objects' centres."""
    eye, rotation = camera_path(scene)
    spans = ((0.0, DURATION, (scene.motion,)),)
    centres, depths = project(positions, eye, rotation, SIZE, scene.fov)
    return Truth(positions, velocities, quaternions, eye, rotation, centres, depths, spans)


def _predict(scene: Scene) -> Truth:
    """The truth without physics: cheap, to sift candidates."""
    velocity = np.array([[*thing.velocity, 0.0] for thing in scene.things])
    start = np.array([[*thing.start, thing.half] for thing in scene.things])
    times = np.arange(NUM_FRAMES)[:, None, None] / FPS
    shape = (NUM_FRAMES, len(scene.things))
    return _truth(scene, start + velocity * times, np.broadcast_to(velocity, (*shape, 3)), np.zeros((*shape, 4)))


def _visible(scene: Scene, truth: Truth) -> bool:
    """Nothing touches or much hides anything else; objects stay in view, one of them at least if the camera moves."""
    half = np.array([thing.half for thing in scene.things])
    radius = half * [SHAPES[thing.shape] for thing in scene.things]
    pixels = scene.focal * radius / np.maximum(truth.depths, 0.1)
    first, second = np.triu_indices(len(half), 1)
    ground = np.linalg.norm(truth.positions[:, first] - truth.positions[:, second], axis=-1)
    image = np.linalg.norm(truth.centres[:, first] - truth.centres[:, second], axis=-1)
    if (ground < 1.2 * (radius[first] + radius[second])).any():
        return False
    if (image < CLEARANCE * (pixels[:, first] + pixels[:, second])).any():
        return False
    inside = (np.abs(truth.centres - SIZE / 2).max(-1) < SIZE / 2 - 0.6 * pixels).all(0)
    return bool(inside.any() if scene.motion != "static" else inside.all())


def _place(
    rng: np.random.Generator, scene: Scene, things: list[dict[str, Any]], when: float, passing: bool
) -> tuple[Thing, ...]:
    """Put each thing where its centre shows at a random pixel at `when`; if passing, the second beside the first."""
    placed, points = [], []
    for thing in things:
        x, y = rng.uniform(20, 92) - SIZE / 2, rng.uniform(30, 96) - SIZE / 2
        down = np.radians(scene.pitch)
        ray = np.array(
            [x, scene.focal * np.cos(down) - y * np.sin(down), -scene.focal * np.sin(down) - y * np.cos(down)]
        )
        point = ray[:2] * (thing["half"] - scene.height) / ray[2]
        if passing and len(points) == 1:
            along = np.subtract(thing["velocity"], things[0]["velocity"])
            beside = np.array([-along[1], along[0]]) / np.linalg.norm(along)
            point = points[0] + beside * rng.uniform(1.1, 2.0) * rng.choice([-1, 1])
        points.append(point)
        placed.append(Thing(**thing, start=tuple((point - np.array(thing["velocity"]) * when).tolist())))
    return tuple(placed)


def _heading(degrees: float, speed: float) -> tuple[float, float]:
    return (float(speed * np.cos(np.radians(degrees))), float(speed * np.sin(np.radians(degrees))))


def _velocities(rng: np.random.Generator, task: str, wanted: int) -> list[tuple[float, float]]:
    """Velocities (x, y) in m/s of the two objects that a question can be about and of a third one."""

    def anyhow(rests: float) -> tuple[float, float]:
        return (0.0, 0.0) if rng.random() < rests else _heading(rng.uniform(0, 360), rng.uniform(0.4, 1.3))

    if task == "camera_motion":
        return [(0.0, 0.0)] * 3
    if task == "object_direction":
        axis = list(OBJECT_DIRECTIONS.values())[wanted]
        speed = rng.uniform(0.5, 1.2) if wanted < 2 else rng.uniform(0.8, 1.6)
        return [_heading(axis + rng.uniform(-12, 12), speed), anyhow(0.5), anyhow(0.5)]
    if task == "faster_object":
        slow = 0.0 if rng.random() < 0.25 else rng.uniform(0.2, 0.65)
        fast = rng.uniform(max(SPEED_RATIO * slow, 0.4), 1.25)
        equal = rng.uniform(0.35, 1.1)
        speeds = ((fast, slow), (slow, fast), (equal, equal), (0.0, 0.0))[wanted]
        headings = rng.choice([0, 180], 2) + rng.uniform(-25, 25, 2)
        return [*map(_heading, headings, speeds), anyhow(0.5)]
    together = anyhow(0.5)
    pair = [together, together] if wanted == 2 else [anyhow(0.0), anyhow(0.4)]
    return [*(pair[i] for i in rng.permutation(2)), anyhow(0.5)]


def _propose(rng: np.random.Generator, task: str, wanted: int) -> Scene:
    """A random scene of the kind that a task wants; the first objects are the ones asked about."""
    colours = rng.permutation(list(COLOURS))
    velocities = _velocities(rng, task, wanted)
    things = []
    for i in range(rng.integers(2, 4)):
        shape = str(rng.choice(list(SHAPES)))
        half = 0.5 if shape == "cone" else rng.uniform(0.40, 0.48) if shape == "cube" else rng.uniform(0.44, 0.54)
        thing = {"colour": str(colours[i]), "shape": shape, "half": float(half), "yaw": float(rng.uniform(0, 90))}
        things.append({**thing, "velocity": velocities[i]})
    motion = CAMERA_MOTIONS[wanted] if task == "camera_motion" else "static"
    low, high = {"pan": (18, 30), "tilt": (16, 26), "dolly": (3.0, 4.2), "static": (0, 0)}[motion.split()[0]]
    view = {"height": rng.uniform(3.3, 4.0), "pitch": rng.uniform(30, 40), "fov": rng.uniform(49, 54)}
    scene = Scene((), motion, rng.uniform(low, high), rng.random(), **view, look=int(rng.integers(2**31)))
    passing = task == "distance_change" and wanted == 3
    when = DURATION * (rng.uniform(0.4, 0.6) if passing else rng.integers(3) / 2)
    return Scene(**{**vars(scene), "things": _place(rng, scene, things, when, passing)})


# Questions


def _question(question: str, answer: str, reasoning: str, things: tuple[int, ...]) -> Question:
    return Question(question, answer, reasoning, tuple((i, TARGET_FRAME) for i in things))


def bins(centres: np.ndarray) -> list[tuple[int, int] | None]:
    """Pixel positions (k, 2) to bins of a 12 x 12 grid; None outside the picture."""
    inside = ((centres >= 0) & (centres < SIZE)).all(-1)
    cells = np.floor(centres * BINS / SIZE).astype(int).tolist()
    return [tuple(cell) if ok else None for cell, ok in zip(cells, inside, strict=True)]


def path_text(name: str, path: Sequence[tuple[int, int] | None]) -> str:
    """`red ball 3 4, 4 4, out, 7 4.`"""
    return f"{name} {', '.join('out' if cell is None else f'{cell[0]} {cell[1]}' for cell in path)}."


def _paths(truth: Truth) -> list[list[tuple[int, int] | None]]:
    return [bins(truth.centres[list(PATH_FRAMES), i]) for i in range(truth.centres.shape[1])]


def _left_to_right(truth: Truth) -> list[int]:
    """Objects by x at the first path time; those out of the picture come last."""
    paths = _paths(truth)
    return sorted(range(len(paths)), key=lambda i: (paths[i][0] is None, truth.centres[PATH_FRAMES[0], i, 0]))


def _ask_camera(scene: Scene, truth: Truth, wanted: int) -> Question | None:
    order, paths = _left_to_right(truth), _paths(truth)
    pixels = scene.focal * 0.5 / truth.depths[TARGET_FRAME]
    shown = (np.abs(truth.centres[TARGET_FRAME] - SIZE / 2).max(-1) < SIZE / 2 - pixels).tolist()
    target = next((i for i in order if shown[i]), None)
    if target is None:
        return None
    said = [path_text(scene.things[i].name, paths[i]) + " <output_image>" * (i == target) for i in order]
    reasoning = f"{' '.join(said)} {SEEN_AS[wanted]}. camera {scene.motion}."
    return _question("How does the camera move?", scene.motion, reasoning, (target,))


def _ask_direction(scene: Scene, truth: Truth, wanted: int) -> Question | None:
    answer, axis = list(OBJECT_DIRECTIONS.items())[wanted]
    name, path = scene.things[0].name, _paths(truth)[0]
    velocity = truth.velocities[:, 0, :2]
    if (
        velocity @ _heading(axis, 1.0) < np.cos(np.radians(DIRECTION_TOLERANCE)) * np.linalg.norm(velocity, axis=-1)
    ).any():
        return None
    x, y = path[-1][0] - path[0][0], path[-1][1] - path[0][1]
    if (-x, x, y, -y)[wanted] < MIN_BINS + min(abs(x), abs(y)):
        return None
    reasoning = f"{path_text(name, path)} <output_image> x changes by {x}, y by {y}. it moves {answer}."
    return _question(f"In which direction does the {name} move?", answer, reasoning, (0,))


def _apart(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Steps between two cells along x plus along y: the sum a small model can do."""
    return abs(first[0] - second[0]) + abs(first[1] - second[1])


def _ask_faster(scene: Scene, truth: Truth, wanted: int) -> Question | None:
    names, paths = [thing.name for thing in scene.things[:2]], _paths(truth)[:2]
    speeds = np.linalg.norm(truth.velocities[PATH_FRAMES[0] :, :2, :2], axis=-1).mean(0)
    moves = [_apart(path[0], path[-1]) for path in paths]
    lead, ratio = moves[0] - moves[1], speeds[0] / max(speeds[1], 1e-9)
    fits = (
        lead >= MIN_BINS and ratio >= SPEED_RATIO - 0.01,
        lead <= -MIN_BINS and ratio <= 1 / (SPEED_RATIO - 0.01),
        abs(lead) < MIN_BINS and min(moves) >= MIN_BINS and abs(ratio - 1) < 0.01,
        speeds.max() < 0.01,
    )[wanted]
    if not fits:
        return None
    answer = (f"the {names[0]}", f"the {names[1]}", "they are equally fast", "neither moves")[wanted]
    said = " ".join(f"{path_text(name, path)} <output_image>" for name, path in zip(names, paths, strict=True))
    end = answer + " is faster" if wanted < 2 else answer
    reasoning = f"{said} {names[0]} moves {moves[0]}. {names[1]} moves {moves[1]}. {end}."
    return _question(f"Which moves faster, the {names[0]} or the {names[1]}?", answer, reasoning, (0, 1))


def _ask_distance(scene: Scene, truth: Truth, wanted: int) -> Question | None:
    names, paths = [thing.name for thing in scene.things[:2]], _paths(truth)[:2]
    gap = np.linalg.norm(truth.positions[:, 0, :2] - truth.positions[:, 1, :2], axis=-1)
    steps, least = np.diff(gap), int(gap.argmin())
    apart = [_apart(*cells) for cells in zip(*paths, strict=True)]
    low = min(apart[1:3])
    fits = (
        (steps > -1e-3).all()
        and gap[-1] >= max(DISTANCE_RATIO * gap[0], gap[0] + DISTANCE_CHANGE)
        and apart == sorted(apart)
        and apart[-1] - apart[0] >= MIN_BINS,
        (steps < 1e-3).all()
        and gap[0] >= max(DISTANCE_RATIO * gap[-1], gap[-1] + DISTANCE_CHANGE)
        and apart[::-1] == sorted(apart)
        and apart[0] - apart[-1] >= MIN_BINS,
        np.ptp(gap) < SAME_DISTANCE * gap.mean() and max(apart) - min(apart) < MIN_BINS,
        NUM_FRAMES / 4 <= least < NUM_FRAMES * 3 / 4
        and min(gap[0], gap[-1]) >= max(PASSING_RATIO * gap[least], gap[least] + DISTANCE_CHANGE)
        and min(apart[0], apart[-1]) - low >= MIN_BINS,
    )[wanted]
    if not fits:
        return None
    said = " ".join(f"{path_text(name, path)} <output_image>" for name, path in zip(names, paths, strict=True))
    reasoning = f"{said} apart {', '.join(map(str, apart))}. {DISTANCES[wanted]}."
    question = f"How does the distance between the {names[0]} and the {names[1]} change?"
    return _question(question, DISTANCES[wanted], reasoning, (0, 1))


ASK = dict(zip(TASKS, (_ask_camera, _ask_direction, _ask_faster, _ask_distance), strict=True))


def pictured(scene: Scene, truth: Truth, task: str, question: Question) -> Question:
    """The same question with a reasoning that pictures instead of writing coordinates: each object asked about at
    0 and 3.5 s (at 2 s too, where the distance may turn), or one when the camera moves, first and last seen whole;
    and then what the words of `question` conclude."""
    if task == "camera_motion":
        thing, frames = _shown(scene, truth)[0]
        looks = [(thing, frame) for frame in frames]
        end = [SEEN_AS[CAMERA_MOTIONS.index(scene.motion)], f"camera {scene.motion}."]
    else:
        looks = _looks(task, question)
        end = question.reasoning.split(". ")[-1:]
    said, last = [], None
    for i, frame in looks:
        said.append(f"{'' if i == last else scene.things[i].name + ' '}at {frame / FPS:g} s <output_image>")
        last = i
    return Question(question.question, question.answer, f"{' '.join(said)} {'. '.join(end)}", tuple(looks))


def placed(scene: Scene, truth: Truth, task: str, question: Question) -> Question:
    """The same question with a reasoning that first pictures, with no word between the images, and then says where
    things are *in what was pictured*: so its words can do without the video. Objects and times are those of
    `pictured`; if the camera moves, the two objects that are shown longest."""
    if task == "camera_motion":
        looks = [(i, frame) for i, frames in _shown(scene, truth)[:2] for frame in frames]
        end = f"{SEEN_AS[CAMERA_MOTIONS.index(scene.motion)]}. camera {scene.motion}."
    else:
        looks, end = _looks(task, question), question.reasoning.split(". ")[-1]
    paths = {i: [frame for thing, frame in looks if thing == i] for i, _ in looks}
    cells = {i: bins(truth.centres[frames, i]) for i, frames in paths.items()}
    names = {i: scene.things[i].name for i in paths}
    asked = " ".join(f"{names[i]} at {', '.join(f'{frame / FPS:g}' for frame in paths[i])} s." for i in paths)
    said = [path_text(names[i], cells[i]) for i in paths]
    if task == "object_direction":
        ((first, last),) = cells.values()
        said.append(f"x changes by {last[0] - first[0]}, y by {last[1] - first[1]}.")
    elif task == "faster_object":
        said += [f"{names[i]} moves {_apart(cells[i][0], cells[i][-1])}." for i in paths]
    elif task == "distance_change":
        said.append(f"apart {', '.join(str(_apart(*pair)) for pair in zip(*cells.values(), strict=True))}.")
    reasoning = f"{asked} {'<output_image>' * len(looks)} {' '.join(said)} {end}"
    return Question(question.question, question.answer, reasoning, tuple(looks))


def _looks(task: str, question: Question) -> list[tuple[int, int]]:
    """Object and frame of what is pictured: each object asked about, early and late."""
    frames = (0, 16, TARGET_FRAME) if task == "distance_change" else (0, TARGET_FRAME)
    return [(i, frame) for i in dict.fromkeys(i for i, _ in question.targets) for frame in frames]


def _shown(scene: Scene, truth: Truth) -> list[tuple[int, tuple[int, ...]]]:
    """Objects that are whole in the picture, longest first, and the first and last of the sampled frames that show
    each. Whole is half a metre about its centre, as for `_ask_camera`, which has made sure that one is at the last."""
    radius = scene.focal * 0.5 / truth.depths
    shown = np.abs(truth.centres - SIZE / 2).max(-1) < SIZE / 2 - radius  # (T, n)
    frames = np.arange(0, TARGET_FRAME + 1, 4)
    spans = [(i, frames[shown[frames, i]]) for i in range(len(scene.things))]
    spans = sorted((span for span in spans if len(span[1])), key=lambda span: -np.ptp(span[1]))
    return [(i, tuple(dict.fromkeys((int(span[0]), int(span[-1]))))) for i, span in spans]


def _ground(scene: Scene, truth: Truth) -> Question:
    said = [path_text(scene.things[i].name, path) for i, path in enumerate(_paths(truth))]
    answer = " ".join([said[i] for i in _left_to_right(truth)] + [f"camera {scene.motion}."])
    return _question("Where is everything over time?", answer, "", ())


def _options(rng: np.random.Generator, task: str, question: Question, names: Sequence[str], letter: int) -> list[str]:
    """Four options with the answer at place `letter`. Camera distractors are uniform: none tells the answer."""
    everything = {
        "camera_motion": CAMERA_MOTIONS,
        "object_direction": tuple(OBJECT_DIRECTIONS),
        "faster_object": (f"the {names[0]}", f"the {names[1]}", "they are equally fast", "neither moves"),
        "distance_change": DISTANCES,
    }[task]
    others = rng.permutation([option for option in everything if option != question.answer])[:3].tolist()
    return [*others[:letter], question.answer, *others[letter:]]


def compose(rng: np.random.Generator, task: str, index: int) -> tuple[Scene, Truth, Question, list[str] | None, Any]:
    """Draw scenes until one shows the answer class that `index` calls for."""
    kind, turn = task, index
    if task == "grounding":  # half camera motion, half object motion
        kind, turn = (TASKS[0], index // 2) if index % 2 == 0 else (TASKS[1 + index // 2 % 3], index // 6)
    num_classes = len(CAMERA_MOTIONS) if kind == "camera_motion" else 4
    wanted, letter = turn % num_classes, (turn % num_classes + turn // num_classes) % 4
    while True:
        scene = _propose(rng, kind, wanted)
        expected = _predict(scene)
        if not _visible(scene, expected) or ASK[kind](scene, expected, wanted) is None:
            continue
        truth, physics = _run(scene)
        if np.abs(truth.positions - expected.positions).max() > 0.01:  # a contact kicked: 1 clip in 200, a cylinder's
            continue
        question = ASK[kind](scene, truth, wanted)
        if question is None or not _visible(scene, truth):
            continue
        if task == "grounding":
            return scene, truth, _ground(scene, truth), None, physics
        options = _options(rng, task, question, [thing.name for thing in scene.things], letter)
        return scene, truth, question, options, physics


# Physics


def _xml(scene: Scene) -> str:
    rng = np.random.default_rng(scene.look)
    x, y, yaw, aim = *rng.uniform(-4, 4, 2), rng.uniform(0, 360), rng.uniform(0, 2 * np.pi)
    bodies = []
    for thing in scene.things:
        kind = {
            "ball": f'type="sphere" size="{thing.half}"',
            "cube": f'type="box" size="{thing.half} {thing.half} {thing.half}"',
            "cylinder": f'type="cylinder" size="{thing.half} {thing.half}"',
            "cone": 'type="mesh" mesh="cone"',
        }[thing.shape]
        pose = f'pos="{thing.start[0]} {thing.start[1]} {thing.half}" euler="0 0 {thing.yaw}"'
        rgb = " ".join(map(str, COLOURS[thing.colour]))
        bodies.append(f'<body {pose}><freejoint/><geom {kind} rgba="{rgb} 1"/></body>')
    # The plane's third size is its grid for drawing: coarse, or it costs 3 ms a frame. condim 1: no friction.
    return f"""<mujoco><option timestep="{1 / FPS / STEPS_PER_FRAME}"/><statistic extent="5" center="0 5 0"/>
<visual><global offwidth="{SIZE}" offheight="{SIZE}"/><quality shadowsize="0" offsamples="0"/>
<headlight ambient=".45 .45 .45" diffuse=".15 .15 .15" specular="0 0 0"/></visual>
<default><geom condim="1"/></default>
<asset><texture name="ground" type="2d" builtin="flat" width="128" height="128"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1=".35 .5 .75" rgb2=".75 .8 .85" width="32" height="192"/>
<material name="ground" texture="ground" texrepeat="20 20" specular="0"/>
<mesh name="cone" builtin="cone" params="24 0" scale=".5 .5 .5"/></asset>
<worldbody>
<light castshadow="false" diffuse=".5 .5 .5" specular="0 0 0" directional="true"
dir="{np.cos(aim)} {np.sin(aim)} -1.6"/>
<geom type="plane" pos="{x} {y} 0" euler="0 0 {yaw}" size="40 40 40" material="ground"/>
<body name="eye" mocap="true"><camera name="eye" fovy="{scene.fov}"/></body>{"".join(bodies)}</worldbody></mujoco>"""


def _paint_ground(model: Any, look: int) -> None:
    """Fill the ground texture (the first) with tiles of two muted tones, 4 m a repeat."""
    rng = np.random.default_rng(look)
    base = rng.uniform(70, 125) + rng.uniform(-10, 10, 3)
    cells = int(rng.choice([8, 16]))
    pattern = rng.random((cells, cells)) if rng.random() < 0.5 else np.indices((cells, cells)).sum(0) % 2
    tiles = np.kron(pattern - 0.5, np.ones((128 // cells, 128 // cells)))
    pixels = np.clip(base + tiles[..., None] * rng.uniform(35, 60), 0, 255).astype(np.uint8)
    model.tex_data[: pixels.size] = pixels.reshape(-1)


def _run(scene: Scene) -> tuple[Truth, Any]:
    """Simulate; returns the truth and (model, joint positions (T, nq)) to render from."""
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string(_xml(scene))
    _paint_ground(model, scene.look)
    data, num = mujoco.MjData(model), len(scene.things)
    for i, thing in enumerate(scene.things):
        data.qvel[6 * i : 6 * i + 2] = thing.velocity
    states, speeds = np.empty((NUM_FRAMES, model.nq)), np.empty((NUM_FRAMES, model.nv))
    for t in range(NUM_FRAMES):
        states[t], speeds[t] = data.qpos, data.qvel
        mujoco.mj_step(model, data, STEPS_PER_FRAME)
    poses = states.reshape(NUM_FRAMES, num, 7)
    velocities = speeds.reshape(NUM_FRAMES, num, 6)[..., :3]
    return _truth(scene, poses[..., :3], velocities, poses[..., 3:]), (model, states)


def template() -> Any:
    """Any model of this kind, to open the studio with."""
    thing = Thing("red", "ball", 0.4, 0.0, (0.0, 5.0), (0.0, 0.0))
    return load_mujoco().MjModel.from_xml_string(_xml(Scene((thing,), "static", 0.0, 0.5, 3.6, 35.0, 50.0, 0)))
