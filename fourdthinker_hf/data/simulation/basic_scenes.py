"""The basic scenes on which the bundled checkpoint was trained, with their four kinds of question, and grounding.

A clip lasts 4 s at 8 fps and shows one kind of motion: either the camera moves and the objects are at rest, or objects
slide without friction at a constant velocity in front of a camera at rest. The world frame is in metres, with z up;
the camera is above the origin and looks along +y and downward, with x to its right. The answer is chosen first (the
possible answers take turns), and then scenes are drawn until one shows it clearly. Question `index` of a task depends
only on (seed, task, index).

The bundled checkpoint and its published figures depend on these records and pixels, so they must never change. A test
compares them with hashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from ..question_vocabulary import OBJECT_DIRECTIONS
from .rendering import FPS, Question, Truth, load_mujoco, project

FRAME_SIZE = 112  # pixels along both axes
NUM_FRAMES = 32
DURATION = NUM_FRAMES / FPS  # s
STEPS_PER_FRAME = 10  # of the physics
GRID_SIZE = 12  # reasoning writes positions as cells of a grid with so many columns and rows
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
OUTLINE_RATIOS = {"ball": 1.0, "cube": 1.25, "cylinder": 1.1, "cone": 1.0}  # radius of the outline over half height

BASIC_TASKS = ("camera_motion", "object_direction", "faster_object", "distance_change")
GROUNDING = "grounding"  # a further task, without options: where is everything over time
APPARENT_MOTIONS = {
    "pan left": "everything moves right",
    "pan right": "everything moves left",
    "tilt up": "everything moves down",
    "tilt down": "everything moves up",
    "dolly in": "everything spreads out",
    "dolly out": "everything closes in",
    "static": "everything stays",
}  # by camera motion, how the picture moves
CAMERA_MOTIONS = tuple(APPARENT_MOTIONS)
DISTANCE_CHANGES = ("it grows", "it shrinks", "it stays the same", "it shrinks, then grows")

# How clear an answer must be, in degrees, ratios and metres.
DIRECTION_TOLERANCE = 15.0
SPEED_RATIO = 1.8
DISTANCE_RATIO = 1.3  # between the first and the last distance, where it grows or shrinks
PASSING_RATIO = 1.4  # of the first and of the last distance to the smallest, where it shrinks, then grows
DISTANCE_CHANGE = 0.8
SAME_DISTANCE = 0.05  # range of the distance over its mean, where it stays the same
CLEARANCE = 0.95  # smallest projected distance of two objects over the sum of their projected radii
MIN_CELLS = 2  # grid cells by which a change must show in the picture


@dataclass(frozen=True)
class BasicObject:
    colour: str
    shape: str
    half_height: float  # m
    yaw: float  # degrees
    start: tuple[float, float]  # x, y in m
    velocity: tuple[float, float]  # x, y in m/s

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class BasicScene:
    objects: tuple[BasicObject, ...]
    camera_motion: str  # one of `CAMERA_MOTIONS`
    amount: float  # of the camera's motion over the clip, degrees or m
    phase: (
        float  # share of the clip after which the camera is at its nominal pose; random, so that no frame tells much
    )
    camera_height: float  # m
    pitch: float  # degrees downward
    fov: float  # vertical, degrees
    appearance_seed: int  # of the ground and the light

    @property
    def focal(self) -> float:
        """The focal length in pixels."""
        return FRAME_SIZE / 2 / np.tan(np.radians(self.fov / 2))


# Wording


def question_text(task: str, names: Sequence[str]) -> str:
    """The question, given the names of the scene's objects."""
    return {
        "camera_motion": "How does the camera move?",
        "object_direction": f"In which direction does the {names[0]} move?",
        "faster_object": f"Which moves faster, the {names[0]} or the {names[1]}?",
        "distance_change": f"How does the distance between the {names[0]} and the {names[1]} change?",
        GROUNDING: "Where is everything over time?",
    }[task]


def possible_answers(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """The answers that a question with options may have."""
    return {
        "camera_motion": CAMERA_MOTIONS,
        "object_direction": tuple(OBJECT_DIRECTIONS),
        "faster_object": (f"the {names[0]}", f"the {names[1]}", "they are equally fast", "neither moves"),
        "distance_change": DISTANCE_CHANGES,
    }[task]


def _options(rng: Generator, task: str, answer: str, names: Sequence[str], position: int) -> list[str]:
    """Four options with the answer at index `position`. All wrong answers are equally likely to be among them."""
    others = rng.permutation([other for other in possible_answers(task, names) if other != answer])[:3].tolist()
    return [*others[:position], answer, *others[position:]]


# Scenes


def camera_path(scene: BasicScene) -> tuple[np.ndarray, np.ndarray]:
    """Camera positions (T, 3) and rotations (T, 3, 3), whose columns are the camera's right, up and backward."""
    amounts = scene.amount * (np.arange(NUM_FRAMES) / NUM_FRAMES - scene.phase)
    sign = -1.0 if scene.camera_motion in ("pan right", "tilt down", "dolly out") else 1.0
    kind = scene.camera_motion.split()[0]
    pan, tilt, dolly = (sign * amounts * (kind == name) for name in ("pan", "tilt", "dolly"))
    yaw, down = np.radians(pan), np.radians(scene.pitch - tilt)
    right = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], -1)
    forward = np.stack([-np.sin(yaw) * np.cos(down), np.cos(yaw) * np.cos(down), -np.sin(down)], -1)
    positions = np.array([0.0, 0.0, scene.camera_height]) + dolly[:, None] * forward
    return positions, np.stack([right, np.cross(right, forward), -forward], -1)


def _make_truth(scene: BasicScene, positions: np.ndarray, velocities: np.ndarray, quaternions: np.ndarray) -> Truth:
    camera_positions, camera_rotations = camera_path(scene)
    spans = ((0.0, DURATION, (scene.camera_motion,)),)
    centres, depths = project(positions, camera_positions, camera_rotations, FRAME_SIZE, scene.fov)
    return Truth(positions, velocities, quaternions, camera_positions, camera_rotations, centres, depths, spans)


def _predict_motion(scene: BasicScene) -> Truth:
    """The truth without running the physics: a cheap first check of a scene."""
    velocity = np.array([[*thing.velocity, 0.0] for thing in scene.objects])
    start = np.array([[*thing.start, thing.half_height] for thing in scene.objects])
    times = np.arange(NUM_FRAMES)[:, None, None] / FPS
    shape = (NUM_FRAMES, len(scene.objects))
    return _make_truth(scene, start + velocity * times, np.broadcast_to(velocity, (*shape, 3)), np.zeros((*shape, 4)))


def _all_visible(scene: BasicScene, truth: Truth) -> bool:
    """Whether no object touches or largely hides another, and all stay in view (at least one if the camera moves)."""
    half_heights = np.array([thing.half_height for thing in scene.objects])
    radius = half_heights * [OUTLINE_RATIOS[thing.shape] for thing in scene.objects]
    pixels = scene.focal * radius / np.maximum(truth.depths, 0.1)
    first, second = np.triu_indices(len(half_heights), 1)
    world_distance = np.linalg.norm(truth.positions[:, first] - truth.positions[:, second], axis=-1)
    pixel_distance = np.linalg.norm(truth.centres[:, first] - truth.centres[:, second], axis=-1)
    if (world_distance < 1.2 * (radius[first] + radius[second])).any():
        return False
    if (pixel_distance < CLEARANCE * (pixels[:, first] + pixels[:, second])).any():
        return False
    inside = (np.abs(truth.centres - FRAME_SIZE / 2).max(-1) < FRAME_SIZE / 2 - 0.6 * pixels).all(0)
    return bool(inside.any() if scene.camera_motion != "static" else inside.all())


def _sample_scene(rng: Generator, task: str, wanted: int) -> BasicScene:
    """Draw a scene that may have possible answer number `wanted`. The objects asked about come first."""
    colours = rng.permutation(list(COLOURS))
    velocities = _sample_velocities(rng, task, wanted)
    objects = []
    for i in range(rng.integers(2, 4)):
        shape = str(rng.choice(list(OUTLINE_RATIOS)))
        size = 0.5 if shape == "cone" else rng.uniform(0.40, 0.48) if shape == "cube" else rng.uniform(0.44, 0.54)
        yaw = float(rng.uniform(0, 90))
        objects.append(BasicObject(str(colours[i]), shape, float(size), yaw, (0.0, 0.0), velocities[i]))
    motion = CAMERA_MOTIONS[wanted] if task == "camera_motion" else "static"
    low, high = {"pan": (18, 30), "tilt": (16, 26), "dolly": (3.0, 4.2), "static": (0, 0)}[motion.split()[0]]
    height, pitch, fov = rng.uniform(3.3, 4.0), rng.uniform(30, 40), rng.uniform(49, 54)
    amount, phase, appearance_seed = rng.uniform(low, high), rng.random(), int(rng.integers(2**31))
    scene = BasicScene(tuple(objects), motion, amount, phase, height, pitch, fov, appearance_seed)
    passing = task == "distance_change" and wanted == 3
    time = DURATION * (rng.uniform(0.4, 0.6) if passing else rng.integers(3) / 2)
    return replace(scene, objects=_place_objects(rng, scene, time, passing))


def _sample_velocities(rng: Generator, task: str, wanted: int) -> list[tuple[float, float]]:
    """Draw velocities (x, y) in m/s: of the two objects that a question may be about, and of a third one."""

    def any_velocity(rest_probability: float) -> tuple[float, float]:
        if rng.random() < rest_probability:
            return (0.0, 0.0)
        return _velocity(rng.uniform(0, 360), rng.uniform(0.4, 1.3))

    if task == "camera_motion":
        return [(0.0, 0.0)] * 3
    if task == "object_direction":
        angle = list(OBJECT_DIRECTIONS.values())[wanted]
        speed = rng.uniform(0.5, 1.2) if wanted < 2 else rng.uniform(0.8, 1.6)
        return [_velocity(angle + rng.uniform(-12, 12), speed), any_velocity(0.5), any_velocity(0.5)]
    if task == "faster_object":
        slow = 0.0 if rng.random() < 0.25 else rng.uniform(0.2, 0.65)
        fast = rng.uniform(max(SPEED_RATIO * slow, 0.4), 1.25)
        equal = rng.uniform(0.35, 1.1)
        speeds = ((fast, slow), (slow, fast), (equal, equal), (0.0, 0.0))[wanted]
        angles = rng.choice([0, 180], 2) + rng.uniform(-25, 25, 2)
        return [*map(_velocity, angles, speeds), any_velocity(0.5)]
    common = any_velocity(0.5)
    pair = [common, common] if wanted == 2 else [any_velocity(0.0), any_velocity(0.4)]
    return [*(pair[i] for i in rng.permutation(2)), any_velocity(0.5)]


def _velocity(angle: float, speed: float) -> tuple[float, float]:
    """The velocity (x, y) of a `speed` at `angle` degrees from +x."""
    return (float(speed * np.cos(np.radians(angle))), float(speed * np.sin(np.radians(angle))))


def _place_objects(rng: Generator, scene: BasicScene, time: float, passing: bool) -> tuple[BasicObject, ...]:
    """Put each object where it is seen at a random pixel at `time` s; if `passing`, the second beside the first."""
    placed, points = [], []
    for thing in scene.objects:
        x, y = rng.uniform(20, 92) - FRAME_SIZE / 2, rng.uniform(30, 96) - FRAME_SIZE / 2
        cos, sin = np.cos(np.radians(scene.pitch)), np.sin(np.radians(scene.pitch))
        ray = np.array([x, scene.focal * cos - y * sin, -scene.focal * sin - y * cos])
        point = ray[:2] * (thing.half_height - scene.camera_height) / ray[2]
        if passing and len(points) == 1:
            along = np.subtract(thing.velocity, scene.objects[0].velocity)
            sideways = np.array([-along[1], along[0]]) / np.linalg.norm(along)
            point = points[0] + sideways * rng.uniform(1.1, 2.0) * rng.choice([-1, 1])
        points.append(point)
        placed.append(replace(thing, start=tuple((point - np.array(thing.velocity) * time).tolist())))
    return tuple(placed)


# Positions in the picture, as reasoning writes them


def grid_cells(centres: np.ndarray) -> list[tuple[int, int] | None]:
    """The grid cells (column, row) of pixel positions (k, 2); None outside the picture."""
    inside = ((centres >= 0) & (centres < FRAME_SIZE)).all(-1)
    cells = np.floor(centres * GRID_SIZE / FRAME_SIZE).astype(int).tolist()
    return [tuple(cell) if ok else None for cell, ok in zip(cells, inside, strict=True)]


def path_text(name: str, path: Sequence[tuple[int, int] | None]) -> str:
    """Grid cells in words: `red ball 3 4, 4 4, out, 7 4.`"""
    return f"{name} {', '.join('out' if cell is None else f'{cell[0]} {cell[1]}' for cell in path)}."


def _paths(truth: Truth) -> list[list[tuple[int, int] | None]]:
    """The grid cells of each object at `PATH_FRAMES`."""
    return [grid_cells(truth.centres[list(PATH_FRAMES), i]) for i in range(truth.centres.shape[1])]


def _left_to_right(truth: Truth) -> list[int]:
    """The objects in order of x at the first of `PATH_FRAMES`; those outside the picture come last."""
    paths = _paths(truth)
    return sorted(range(len(paths)), key=lambda i: (paths[i][0] is None, truth.centres[PATH_FRAMES[0], i, 0]))


def _cell_distance(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Steps between two cells along x plus those along y: a small model can add, but not take a root."""
    return abs(first[0] - second[0]) + abs(first[1] - second[1])


# Questions: each function returns the question if the truth shows possible answer number `wanted` clearly, else None.


def _question(task: str, names: Sequence[str], answer: str, reasoning: str, pictured: Sequence[int]) -> Question:
    """A question whose target images show the objects `pictured` at 3.5 s."""
    return Question(question_text(task, names), answer, reasoning, tuple((i, TARGET_FRAME) for i in pictured))


def _camera_motion_question(scene: BasicScene, truth: Truth, wanted: int) -> Question | None:
    names, order, paths = [thing.name for thing in scene.objects], _left_to_right(truth), _paths(truth)
    inside = _wholly_inside(scene, truth)[TARGET_FRAME]
    target = next((i for i in order if inside[i]), None)
    if target is None:
        return None
    sentences = [path_text(names[i], paths[i]) + " <output_image>" * (i == target) for i in order]
    reasoning = f"{' '.join(sentences)} {_camera_conclusion(scene)}"
    return _question("camera_motion", names, scene.camera_motion, reasoning, [target])


def _camera_conclusion(scene: BasicScene) -> str:
    return f"{APPARENT_MOTIONS[scene.camera_motion]}. camera {scene.camera_motion}."


def _wholly_inside(scene: BasicScene, truth: Truth) -> np.ndarray:
    """Whether each object is wholly within the picture, taken as 0.5 m around its centre; (T, n)."""
    radius = scene.focal * 0.5 / truth.depths
    return np.abs(truth.centres - FRAME_SIZE / 2).max(-1) < FRAME_SIZE / 2 - radius


def _object_direction_question(scene: BasicScene, truth: Truth, wanted: int) -> Question | None:
    answer, angle = list(OBJECT_DIRECTIONS.items())[wanted]
    names, path = [thing.name for thing in scene.objects], _paths(truth)[0]
    velocity = truth.velocities[:, 0, :2]
    speed = np.linalg.norm(velocity, axis=-1)
    if (velocity @ _velocity(angle, 1.0) < np.cos(np.radians(DIRECTION_TOLERANCE)) * speed).any():
        return None
    x, y = path[-1][0] - path[0][0], path[-1][1] - path[0][1]
    if (-x, x, y, -y)[wanted] < MIN_CELLS + min(abs(x), abs(y)):
        return None
    reasoning = f"{path_text(names[0], path)} <output_image> x changes by {x}, y by {y}. it moves {answer}."
    return _question("object_direction", names, answer, reasoning, [0])


def _faster_object_question(scene: BasicScene, truth: Truth, wanted: int) -> Question | None:
    names, paths = [thing.name for thing in scene.objects[:2]], _paths(truth)[:2]
    speeds = np.linalg.norm(truth.velocities[PATH_FRAMES[0] :, :2, :2], axis=-1).mean(0)
    moves = [_cell_distance(path[0], path[-1]) for path in paths]
    lead, ratio = moves[0] - moves[1], speeds[0] / max(speeds[1], 1e-9)
    clear = (
        lead >= MIN_CELLS and ratio >= SPEED_RATIO - 0.01,
        lead <= -MIN_CELLS and ratio <= 1 / (SPEED_RATIO - 0.01),
        abs(lead) < MIN_CELLS and min(moves) >= MIN_CELLS and abs(ratio - 1) < 0.01,
        speeds.max() < 0.01,
    )[wanted]
    if not clear:
        return None
    answer = possible_answers("faster_object", names)[wanted]
    conclusion = answer + " is faster" if wanted < 2 else answer
    reasoning = f"{_paths_text(names, paths)} {names[0]} moves {moves[0]}. {names[1]} moves {moves[1]}. {conclusion}."
    return _question("faster_object", names, answer, reasoning, [0, 1])


def _paths_text(names: Sequence[str], paths: Sequence[Sequence[tuple[int, int] | None]]) -> str:
    return " ".join(f"{path_text(name, path)} <output_image>" for name, path in zip(names, paths, strict=True))


def _distance_change_question(scene: BasicScene, truth: Truth, wanted: int) -> Question | None:
    names, paths = [thing.name for thing in scene.objects[:2]], _paths(truth)[:2]
    distances = np.linalg.norm(truth.positions[:, 0, :2] - truth.positions[:, 1, :2], axis=-1)
    first, last, smallest = distances[0], distances[-1], distances.min()
    steps, frame_of_smallest = np.diff(distances), int(distances.argmin())
    cells = [_cell_distance(*pair) for pair in zip(*paths, strict=True)]
    clear = (
        (steps > -1e-3).all()
        and last >= max(DISTANCE_RATIO * first, first + DISTANCE_CHANGE)
        and cells == sorted(cells)
        and cells[-1] - cells[0] >= MIN_CELLS,
        (steps < 1e-3).all()
        and first >= max(DISTANCE_RATIO * last, last + DISTANCE_CHANGE)
        and cells[::-1] == sorted(cells)
        and cells[0] - cells[-1] >= MIN_CELLS,
        np.ptp(distances) < SAME_DISTANCE * distances.mean() and max(cells) - min(cells) < MIN_CELLS,
        NUM_FRAMES / 4 <= frame_of_smallest < NUM_FRAMES * 3 / 4
        and min(first, last) >= max(PASSING_RATIO * smallest, smallest + DISTANCE_CHANGE)
        and min(cells[0], cells[-1]) - min(cells[1:3]) >= MIN_CELLS,
    )[wanted]
    if not clear:
        return None
    answer = DISTANCE_CHANGES[wanted]
    reasoning = f"{_paths_text(names, paths)} apart {', '.join(map(str, cells))}. {answer}."
    return _question("distance_change", names, answer, reasoning, [0, 1])


_MAKE_QUESTION = {
    "camera_motion": _camera_motion_question,
    "object_direction": _object_direction_question,
    "faster_object": _faster_object_question,
    "distance_change": _distance_change_question,
}


def _grounding_question(scene: BasicScene, truth: Truth) -> Question:
    names, paths = [thing.name for thing in scene.objects], _paths(truth)
    sentences = [path_text(names[i], paths[i]) for i in _left_to_right(truth)]
    return _question(GROUNDING, names, " ".join([*sentences, f"camera {scene.camera_motion}."]), "", [])


# Other ways to reason about the same question


def with_pictures_reasoning(scene: BasicScene, truth: Truth, task: str, question: Question) -> Question:
    """The same question with reasoning of the kind "pictures", which writes no coordinates.

    It has a mental image of each object that is asked about at 0 and 3.5 s (and at 2 s for the distance), or, if the
    camera moves, of the object that is longest in view, when it is first and last wholly in view. It ends with the
    conclusion of `question`.
    """
    targets, conclusion = _targets_and_conclusion(scene, truth, task, question, num_objects=1)
    sentences, previous = [], None
    for i, frame in targets:
        name = "" if i == previous else scene.objects[i].name + " "
        sentences.append(f"{name}at {frame / FPS:g} s <output_image>")
        previous = i
    return Question(question.question, question.answer, f"{' '.join(sentences)} {conclusion}", targets)


def with_places_reasoning(scene: BasicScene, truth: Truth, task: str, question: Question) -> Question:
    """The same question with reasoning of the kind "places", which writes coordinates after all mental images.

    First come the mental images, with no text between them; then the text says where the objects are in those images,
    so that it can be written without looking at the video. Objects and times are those of `with_pictures_reasoning`,
    but if the camera moves there are two objects.
    """
    targets, conclusion = _targets_and_conclusion(scene, truth, task, question, num_objects=2)
    frames = {i: [frame for other, frame in targets if other == i] for i, _ in targets}
    cells = {i: grid_cells(truth.centres[frames[i], i]) for i in frames}
    names = {i: scene.objects[i].name for i in frames}
    times = " ".join(f"{names[i]} at {', '.join(f'{frame / FPS:g}' for frame in frames[i])} s." for i in frames)
    sentences = [path_text(names[i], cells[i]) for i in frames]
    if task == "object_direction":
        ((first, last),) = cells.values()
        sentences.append(f"x changes by {last[0] - first[0]}, y by {last[1] - first[1]}.")
    elif task == "faster_object":
        sentences += [f"{names[i]} moves {_cell_distance(cells[i][0], cells[i][-1])}." for i in frames]
    elif task == "distance_change":
        distances = [_cell_distance(*pair) for pair in zip(*cells.values(), strict=True)]
        sentences.append(f"apart {', '.join(map(str, distances))}.")
    reasoning = f"{times} {'<output_image>' * len(targets)} {' '.join(sentences)} {conclusion}"
    return Question(question.question, question.answer, reasoning, targets)


def _targets_and_conclusion(
    scene: BasicScene, truth: Truth, task: str, question: Question, num_objects: int
) -> tuple[tuple[tuple[int, int], ...], str]:
    """(object, frame) of every mental image, of `num_objects` objects if the camera moves; and the conclusion."""
    if task == "camera_motion":
        longest = _visible_spans(scene, truth)[:num_objects]
        return tuple((i, frame) for i, frames in longest for frame in frames), _camera_conclusion(scene)
    frames = (0, 16, TARGET_FRAME) if task == "distance_change" else (0, TARGET_FRAME)
    targets = tuple((i, frame) for i in dict.fromkeys(i for i, _ in question.targets) for frame in frames)
    return targets, question.reasoning.split(". ")[-1]


def _visible_spans(scene: BasicScene, truth: Truth) -> list[tuple[int, tuple[int, ...]]]:
    """The objects that are ever wholly in view, longest first, each with the first and last frame that show it.

    Only every fourth frame is considered. There is at least one: `_camera_motion_question` refuses other scenes.
    """
    inside = _wholly_inside(scene, truth)
    frames = np.arange(0, TARGET_FRAME + 1, 4)
    spans = [(i, frames[inside[frames, i]]) for i in range(len(scene.objects))]
    spans = sorted((span for span in spans if len(span[1])), key=lambda span: -np.ptp(span[1]))
    return [(i, tuple(dict.fromkeys((int(span[0]), int(span[-1]))))) for i, span in spans]


# Simulation


def simulate_question(
    rng: Generator, task: str, index: int
) -> tuple[BasicScene, Truth, Question, list[str] | None, tuple[Any, np.ndarray]]:
    """Draw scenes until one shows the answer that `index` calls for.

    Returns the scene, its truth, the question, its options, and (model, states) to render from.
    """
    kind, turn = task, index
    if task == GROUNDING:  # half of the scenes have camera motion, half object motion
        kind, turn = (BASIC_TASKS[0], index // 2) if index % 2 == 0 else (BASIC_TASKS[1 + index // 2 % 3], index // 6)
    num_answers = len(CAMERA_MOTIONS) if kind == "camera_motion" else 4
    wanted, position = turn % num_answers, (turn % num_answers + turn // num_answers) % 4
    while True:
        scene = _sample_scene(rng, kind, wanted)
        expected = _predict_motion(scene)
        if not _all_visible(scene, expected) or _MAKE_QUESTION[kind](scene, expected, wanted) is None:
            continue
        truth, physics = _run_physics(scene)
        # In one clip of 200 a contact with the ground pushes an object off its course, most often a cylinder.
        if np.abs(truth.positions - expected.positions).max() > 0.01:
            continue
        question = _MAKE_QUESTION[kind](scene, truth, wanted)
        if question is None or not _all_visible(scene, truth):
            continue
        if task == GROUNDING:
            return scene, truth, _grounding_question(scene, truth), None, physics
        options = _options(rng, task, question.answer, [thing.name for thing in scene.objects], position)
        return scene, truth, question, options, physics


def _run_physics(scene: BasicScene) -> tuple[Truth, tuple[Any, np.ndarray]]:
    """Simulate a scene; returns the truth, and (model, joint positions (T, nq)) to render from."""
    mujoco = load_mujoco()
    model = _make_model(scene)
    _paint_ground(model, scene.appearance_seed)
    data, num_objects = mujoco.MjData(model), len(scene.objects)
    for i, thing in enumerate(scene.objects):
        data.qvel[6 * i : 6 * i + 2] = thing.velocity
    states, speeds = np.empty((NUM_FRAMES, model.nq)), np.empty((NUM_FRAMES, model.nv))
    for t in range(NUM_FRAMES):
        states[t], speeds[t] = data.qpos, data.qvel
        mujoco.mj_step(model, data, STEPS_PER_FRAME)
    poses = states.reshape(NUM_FRAMES, num_objects, 7)
    velocities = speeds.reshape(NUM_FRAMES, num_objects, 6)[..., :3]
    return _make_truth(scene, poses[..., :3], velocities, poses[..., 3:]), (model, states)


def _make_model(scene: BasicScene) -> Any:
    """The MuJoCo model of a scene, whose ground is still grey."""
    rng = np.random.default_rng(scene.appearance_seed)
    x, y, yaw, light_angle = *rng.uniform(-4, 4, 2), rng.uniform(0, 360), rng.uniform(0, 2 * np.pi)
    bodies = []
    for thing in scene.objects:
        half = thing.half_height
        geom = {
            "ball": f'type="sphere" size="{half}"',
            "cube": f'type="box" size="{half} {half} {half}"',
            "cylinder": f'type="cylinder" size="{half} {half}"',
            "cone": 'type="mesh" mesh="cone"',
        }[thing.shape]
        pose = f'pos="{thing.start[0]} {thing.start[1]} {half}" euler="0 0 {thing.yaw}"'
        rgb = " ".join(map(str, COLOURS[thing.colour]))
        bodies.append(f'<body {pose}><freejoint/><geom {geom} rgba="{rgb} 1"/></body>')
    # The third size of the plane is the spacing of the grid it is drawn with: a fine one costs 3 ms a frame.
    # condim="1" means contacts without friction.
    text = f"""<mujoco><option timestep="{1 / FPS / STEPS_PER_FRAME}"/><statistic extent="5" center="0 5 0"/>
<visual><global offwidth="{FRAME_SIZE}" offheight="{FRAME_SIZE}"/><quality shadowsize="0" offsamples="0"/>
<headlight ambient=".45 .45 .45" diffuse=".15 .15 .15" specular="0 0 0"/></visual>
<default><geom condim="1"/></default>
<asset><texture name="ground" type="2d" builtin="flat" width="128" height="128"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1=".35 .5 .75" rgb2=".75 .8 .85" width="32" height="192"/>
<material name="ground" texture="ground" texrepeat="20 20" specular="0"/>
<mesh name="cone" builtin="cone" params="24 0" scale=".5 .5 .5"/></asset>
<worldbody>
<light castshadow="false" diffuse=".5 .5 .5" specular="0 0 0" directional="true"
dir="{np.cos(light_angle)} {np.sin(light_angle)} -1.6"/>
<geom type="plane" pos="{x} {y} 0" euler="0 0 {yaw}" size="40 40 40" material="ground"/>
<body name="eye" mocap="true"><camera name="eye" fovy="{scene.fov}"/></body>{"".join(bodies)}</worldbody></mujoco>"""
    return load_mujoco().MjModel.from_xml_string(text)


def _paint_ground(model: Any, seed: int) -> None:
    """Fill the ground's texture, which is the model's first, with tiles of two muted tones, repeated every 4 m."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(70, 125) + rng.uniform(-10, 10, 3)
    cells = int(rng.choice([8, 16]))
    pattern = rng.random((cells, cells)) if rng.random() < 0.5 else np.indices((cells, cells)).sum(0) % 2
    tiles = np.kron(pattern - 0.5, np.ones((128 // cells, 128 // cells)))
    pixels = np.clip(base + tiles[..., None] * rng.uniform(35, 60), 0, 255).astype(np.uint8)
    model.tex_data[: pixels.size] = pixels.reshape(-1)


def template_model() -> Any:
    """Some model of a basic scene, from which a `Renderer` for all of them can be made."""
    thing = BasicObject("red", "ball", 0.4, 0.0, (0.0, 5.0), (0.0, 0.0))
    return _make_model(BasicScene((thing,), "static", 0.0, 0.5, 3.6, 35.0, 50.0, 0))
