"""Generates questions about simulated 4D scenes. MuJoCo moves the objects and the camera, so every answer is exact.

There are two families of questions. The basic tasks (`basic_scenes.py`), on which the bundled checkpoint was trained,
exist at level 1. DSR-Sim has the 13 tasks of DSR-Bench (`template_questions.py`, `non_template_questions.py`) at three
levels:

| level | objects | motion | clip | frames |
| --- | --- | --- | --- | --- |
| 1 | 2 or 3, without texture | the camera or the objects move, nothing is hidden | 4 s | 112 x 112 |
| 2 | 2 to 4 | both move, objects fall and are pushed; visible in 80% of the span | 5 to 10 s | 224 x 224 |
| 3 | 2 to 6 | several camera moves, up to three runs; visible in 60% of the span | 2 to 20 s | 224 x 224 |

All clips have 8 frames per second. The wording and the wanted answer are drawn first, independently of each other, and
then scenes until one shows that answer clearly. So nothing in the text of a question tells its answer. Question number
`index` of a task depends only on (seed, task, index, level, split). The split "unseen" has shapes, colours and speeds
that "train" never has.
"""

import functools
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from ...output_files import file_hash, versions
from ..media import highlight, write_picture, write_video
from ..parts import make_records
from ..question_vocabulary import DSR_TASKS, NON_TEMPLATE_TASK, sequence_text, with_distractors
from ..records import Record
from . import basic_scenes, non_template_questions, template_questions
from .basic_scenes import BASIC_TASKS, GROUNDING
from .physics import predict_motion, run_physics, template_model
from .rendering import FPS, Clip, Question, Renderer, Truth
from .scene_sampling import sample_scene, sample_specs
from .scenes import CAMERA, FRAME_SIZES, SHAPES_WITH_FRONT, SPLITS, Scene
from .template_questions import QuestionSpec

ALL_TASKS = (*BASIC_TASKS, GROUNDING, *DSR_TASKS)
LEVELS = (1, 2, 3)
REASONINGS = ("paths", "pictures", "places")
PART_SIZE = 8  # questions that are made together: so many are lost by a kill, for each worker
SCENES_PER_WORDING = 400  # scenes drawn for one wording before another wording is drawn

# What "visible" means, by level. Every `CHECK_STEP`th frame is checked: two a second.
CHECK_STEP = 4
VISIBLE_SHARE = {1: 1.0, 2: 0.8, 3: 0.6}  # of the checked frames in which an object must be visible
VISIBLE_AREA = {1: 0.5, 2: 0.3, 3: 0.3}  # share of an object's outline that is then not hidden
VISIBLE_PIXELS = 12  # and pixels of it, at 112 x 112
MIN_SIZE = {1: 0.045, 2: 0.035, 3: 0.03}  # half height over the frame's height, of objects that a question is about
MIN_SIZE_WITH_FRONT = 0.045  # the same for objects whose front must be recognizable


def expand_tasks(tasks: Sequence[str] | None, level: int) -> tuple[str, ...]:
    """Replace "dsr" by its 13 tasks. The default is the basic tasks at level 1, and dsr at other levels."""
    if tasks is None:
        return BASIC_TASKS if level == 1 else DSR_TASKS
    return tuple(name for task in tasks for name in (DSR_TASKS if task == "dsr" else (task,)))


def check_request(tasks: Sequence[str], level: int, split: str, reasoning: str = "paths") -> None:
    """Raise a `ValueError` if there are no such questions."""
    if level not in LEVELS:
        raise ValueError(f"level must be 1, 2 or 3, not {level}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if reasoning not in REASONINGS:
        raise ValueError(f"unknown reasoning {reasoning!r}; it is paths, pictures or places")
    if not tasks:
        raise ValueError("no tasks given")
    for task in tasks:
        if task not in ALL_TASKS:
            raise ValueError(f"unknown task {task!r}; the tasks are dsr, {', '.join(ALL_TASKS)}")
        if task not in DSR_TASKS and (level, split) != (1, "train"):
            raise ValueError(
                f"task {task!r} exists only at level 1 in split train, not at level {level} in split {split}"
            )
        if reasoning != "paths" and task not in BASIC_TASKS:
            raise ValueError(f"{reasoning} reasoning exists only for {', '.join(BASIC_TASKS)}, not for {task}")


# One question


@dataclass(frozen=True)
class SimulatedQuestion:
    """A question and the scene that shows its answer, not yet rendered."""

    scene: Any  # a `basic_scenes.BasicScene` or a `scenes.Scene`
    truth: Truth
    question: Question
    options: list[str] | None
    physics: tuple[Any, np.ndarray]  # MuJoCo's model, and its joint positions (T, nq)
    num_scenes: int = 0  # scenes drawn until this one was accepted; not counted for basic tasks


def simulate_question(
    seed: int, task: str, index: int = 0, level: int = 1, split: str = "train", reasoning: str = "paths"
) -> SimulatedQuestion:
    """Find the scene of question `index` of a task. It is the same on every call."""
    check_request([task], level, split, reasoning)
    if task not in DSR_TASKS:
        rng = np.random.default_rng([seed, zlib.crc32(task.encode()), index])
        simulated = SimulatedQuestion(*basic_scenes.simulate_question(rng, task, index))
        if reasoning == "paths":
            return simulated
        reword = {"pictures": basic_scenes.with_pictures_reasoning, "places": basic_scenes.with_places_reasoning}
        question = reword[reasoning](simulated.scene, simulated.truth, task, simulated.question)
        return replace(simulated, question=question)
    key = zlib.crc32(f"{task} {level} {split}".encode())
    rng, turn = np.random.default_rng([seed, key, index]), index + (seed + key) % 997  # each task starts elsewhere
    if task == NON_TEMPLATE_TASK:
        simulated = _simulate_non_template_question(rng, turn, level, split)
    else:
        simulated = _simulate_template_question(rng, task, turn, level, split)
    num_frames = simulated.scene.num_frames  # the truth goes on after the clip's end
    arrays = {k: value[:num_frames] for k, value in vars(simulated.truth).items() if isinstance(value, np.ndarray)}
    return replace(simulated, truth=replace(simulated.truth, **arrays))


def _answer_and_position(turn: int, num_answers: int) -> tuple[int, int]:
    """Number of the wanted answer and of its option: all answers in turn, and each answer at all options in turn."""
    return turn % num_answers, (turn % num_answers + turn // num_answers) % 4


def _simulate_template_question(rng: Generator, task: str, turn: int, level: int, split: str) -> SimulatedQuestion:
    num_scenes, answers = 0, None
    while True:
        spec, scene_spec = sample_specs(rng, task, level, split)
        possible = template_questions.possible_answers(spec, level)
        answers = answers or possible
        if possible != answers:  # a new wording keeps the wanted answer, so that difficult answers stay as frequent
            continue
        number, position = _answer_and_position(turn, len(answers))
        names, wanted = [f"{colour} {shape}" for colour, shape in scene_spec.objects], answers[number]
        for _ in range(SCENES_PER_WORDING):
            num_scenes += 1
            scene = sample_scene(rng, spec, scene_spec, wanted)
            find_answer = functools.partial(template_questions.find_answer, spec=spec)
            found = scene and _simulate_if_clear(scene, find_answer, wanted, *_frames_to_see(spec, scene))
            targets = found and _choose_targets(spec, found[2])
            if not targets:
                continue
            truth, physics, _ = found
            reasoning = template_questions.reasoning_text(truth, spec, names, wanted, targets)
            answer = sequence_text(wanted)
            options = with_distractors(rng, answer, list(map(sequence_text, answers)), position)
            question = Question(template_questions.question_text(spec, names), answer, reasoning, targets)
            return SimulatedQuestion(scene, truth, question, options, physics, num_scenes)


def _simulate_non_template_question(rng: Generator, turn: int, level: int, split: str) -> SimulatedQuestion:
    kinds = non_template_questions.KINDS[level]
    kind, turn = kinds[turn % len(kinds)], turn // len(kinds)
    answers = non_template_questions.possible_answers(kind, level, split)
    number, position = _answer_and_position(turn, max(1, len(answers)))
    wanted, num_scenes = answers[number] if answers else None, 0
    while True:
        scene_spec = non_template_questions.sample_scene_spec(rng, kind, wanted, level, split)
        for _ in range(SCENES_PER_WORDING):
            num_scenes += 1
            scene = non_template_questions.sample_scene(rng, kind, wanted, scene_spec)
            expected = non_template_questions.expected_answer(kind, scene)
            if not expected:
                continue
            find_answer = functools.partial(non_template_questions.find_answer, kind, scene)
            frames = non_template_questions.frames_to_see(kind, expected, scene, CHECK_STEP)
            found = _simulate_if_clear(scene, find_answer, wanted, frames, predictable=False)
            if not found:
                continue
            truth, physics, _ = found
            answer, names = find_answer(truth), [body.name for body in scene.objects]
            distractors = non_template_questions.distractors(rng, kind, answer, scene, scene_spec)
            options = with_distractors(rng, answer, distractors, position)
            question = Question(non_template_questions.question_text(kind, names), answer, "", ())
            return SimulatedQuestion(scene, truth, question, options, physics, num_scenes)


# Whether a scene shows the wanted answer clearly


def _simulate_if_clear(
    scene: Scene,
    find_answer: Callable[[Truth], Any],
    wanted: Any,
    frames_to_see: dict[int, list[int]],
    predictable: bool,
) -> tuple[Truth, tuple[Any, np.ndarray], dict[int, list[int]]] | None:
    """Simulate a scene if it shows the wanted answer (None: any), and return None if it does not.

    `frames_to_see` has the frames in which each object has to be visible; `predictable` says whether the answer can be
    found without running the physics. Returns the truth, the physics to render from, and those of `frames_to_see` in
    which each object is visible. The cheap checks come first.
    """
    expected = predict_motion(scene)
    if not _objects_apart(scene, expected) or not _large_within_frame(scene, expected, frames_to_see):
        return None
    if predictable and find_answer(expected) != wanted:
        return None
    truth, physics = run_physics(scene)
    found = find_answer(truth)
    if found is None or (wanted is not None and found != wanted):
        return None
    if not _large_within_frame(scene, truth, frames_to_see):
        return None
    visible = _visible_frames(scene, truth, physics, frames_to_see)
    share = VISIBLE_SHARE[scene.level]
    if not all(_visible_enough(frames, visible[i], share) for i, frames in frames_to_see.items()):
        return None
    return truth, physics, visible


def _frames_to_see(spec: QuestionSpec, scene: Scene) -> tuple[dict[int, list[int]], bool]:
    """By object, the frames in which it has to be visible; and whether the answer can be found without the physics."""
    span = spec.span
    begin = span.start if spec.kind != "dir_pred" else max(0, round(spec.end * FPS) - 2 * FPS + CHECK_STEP)
    frames = sorted({*range(begin, span.stop, CHECK_STEP), min(span.stop, scene.num_frames) - 1})
    frames_to_see = {i: frames for i in spec.asked_objects}
    if spec.subject == CAMERA:  # the turning of the camera shows only while an object is in view
        frames_to_see[0] = [frames[0], frames[-1]]
    if spec.agent != CAMERA:
        frames_to_see[spec.agent] = frames if spec.relative else [round(spec.view_time * FPS)]
    return frames_to_see, all(scene.objects[i].segments for i in spec.asked_objects)


def _objects_apart(scene: Scene, truth: Truth) -> bool:
    """Whether no bodies overlap in the first frame, and no two driven bodies in any."""
    for i, first in enumerate(scene.objects):
        for j, second in enumerate(scene.objects[:i]):
            distances = np.linalg.norm(truth.positions[:, i, :2] - truth.positions[:, j, :2], axis=-1)
            smallest = distances.min() if first.segments and second.segments else distances[0]
            if smallest < 1.1 * (first.footprint_radius + second.footprint_radius):
                return False
    return True


def _large_within_frame(scene: Scene, truth: Truth, frames_to_see: dict[int, list[int]]) -> bool:
    """Whether objects are within the frame, before the camera and large enough, as often as they must be visible."""
    for i, frames in frames_to_see.items():
        body = scene.objects[i]
        radius = scene.focal * body.half_height / np.maximum(truth.depths[frames, i], 0.3)
        inside = np.abs(truth.centres[frames, i] - scene.size / 2).max(-1) < scene.size / 2 - 0.6 * radius
        min_size = max(MIN_SIZE[scene.level], MIN_SIZE_WITH_FRONT * (body.shape in SHAPES_WITH_FRONT)) * scene.size
        if (inside & (radius > min_size) & (truth.depths[frames, i] > 0.5)).mean() < VISIBLE_SHARE[scene.level]:
            return False
    return True


def _visible_frames(
    scene: Scene, truth: Truth, physics: tuple[Any, np.ndarray], frames_to_see: dict[int, list[int]]
) -> dict[int, list[int]]:
    """Those of `frames_to_see` in which each object is visible, by rendered masks."""
    frames = sorted({frame for some in frames_to_see.values() for frame in some})
    if not frames:
        return {}
    size = FRAME_SIZES[1]
    masks = _renderer(scene.level).render(*physics, truth, [], frames, size=size)[1]
    visible = {}
    for i, some in frames_to_see.items():
        radius = scene.focal * size / scene.size * scene.objects[i].half_height / np.maximum(truth.depths[:, i], 0.3)
        min_pixels = np.maximum(VISIBLE_PIXELS, VISIBLE_AREA[scene.level] * (np.pi * radius**2))
        pixels = {frame: int((mask == i + 1).sum()) for frame, mask in zip(frames, masks, strict=True)}
        visible[i] = [frame for frame in some if pixels[frame] >= min_pixels[frame]]
    return visible


def _visible_enough(frames: list[int], visible: list[int], share: float) -> bool:
    """Whether `share` of the frames are visible, and half of each third of them, so that every run can be seen."""
    thirds = np.array_split(frames, 3) if len(frames) > 3 else [frames]
    return len(visible) >= share * len(frames) and all(np.isin(third, visible).mean() >= 0.5 for third in thirds)


def _choose_targets(spec: QuestionSpec, visible: dict[int, list[int]]) -> tuple[tuple[int, int], ...] | None:
    """(object, frame) of each mental image: a single object first and last visible in the span, or two last visible.

    If the question is about the camera, the mental images show object 0.
    """
    objects = spec.asked_objects or (0,)
    if not all(visible[i] for i in objects):
        return None
    if len(objects) == 1:
        frames = visible[objects[0]]
        return tuple((objects[0], frame) for frame in sorted({frames[0], frames[-1]}))
    return tuple((i, visible[i][-1]) for i in objects)


# Clips


@functools.cache
def _renderer(level: int) -> Renderer:
    return Renderer(template_model(level), FRAME_SIZES[level])


@functools.cache
def _basic_renderer() -> Renderer:
    return Renderer(basic_scenes.template_model(), basic_scenes.FRAME_SIZE)


def simulate_clip(
    seed: int,
    task: str,
    index: int = 0,
    level: int = 1,
    mask_frames: Sequence[int] | None = None,
    depth: bool = False,
    split: str = "train",
    reasoning: str = "paths",
) -> Clip:
    """Simulate and render question `index` of a task. It is the same on every call.

    `mask_frames` are the frames whose masks are rendered, by default all.
    """
    simulated = simulate_question(seed, task, index, level, split, reasoning)
    if mask_frames is None:
        mask_frames = range(len(simulated.truth.positions))
    return _render_clip(simulated, mask_frames, depth)


def _render_clip(simulated: SimulatedQuestion, mask_frames: Sequence[int], depth: bool = False) -> Clip:
    scene, truth = simulated.scene, simulated.truth
    frames = range(len(truth.positions))
    renderer = _renderer(scene.level) if isinstance(scene, Scene) else _basic_renderer()
    images, masks, depths = renderer.render(*simulated.physics, truth, frames, mask_frames, depth)
    times = np.arange(len(frames)) / FPS
    return Clip(scene, truth, simulated.question, simulated.options, images, times, tuple(mask_frames), masks, depths)


def clip_from_record(record: Record) -> Clip:
    """Simulate and render the clip of a record again, with masks of all frames."""
    source = record.source
    if not source or source.get("generator") != "simulation":
        raise ValueError(f"record {record.id} does not come from the simulation")
    keys = ("seed", "task", "index", "level", "split", "reasoning")
    return simulate_clip(**{key: source[key] for key in keys if key in source})


# Files


def simulate(
    num: int,
    seed: int,
    out: str | os.PathLike[str],
    level: int = 1,
    tasks: Sequence[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    split: str = "train",
    reasoning: str = "paths",
) -> Path:
    """Write `num` questions to `out/records.jsonl`, with `videos/` and `images/` beside it; returns its path.

    The tasks take turns. Question i depends only on (seed, i, tasks, level, split, reasoning), not on `num` or on the
    number of worker processes `workers` (by default one per CPU core).

    `reasoning` chooses the reasoning and the target images of the basic tasks; all else stays the same. "paths"
    writes the coordinates of each object beside its mental image, "pictures" has two or three mental images of each
    object and writes no coordinates, "places" has the mental images first and then writes where the objects are in
    them.

    A run that was killed is continued by the same call. Raises `ValueError` if `out` holds other work.
    """
    out = Path(out).absolute()
    tasks = expand_tasks(tasks, level)
    check_request(tasks, level, split, reasoning)
    settings = {"num": num, "seed": seed, "level": level, "tasks": tasks, "split": split, "reasoning": reasoning}
    work = {"command": "simulate", **settings, **versions("mujoco", "numpy", "av")}
    jobs = [(i, tasks[i % len(tasks)], i // len(tasks), seed, level, split, reasoning, str(out)) for i in range(num)]
    parts = [jobs[i : i + PART_SIZE] for i in range(0, num, PART_SIZE)]
    workers = workers or min(os.cpu_count() or 1, max(1, num // 16))  # starting a worker takes seconds
    return make_records(out, work, parts, _write_questions, workers, progress)


def _write_questions(jobs: list[tuple]) -> list[Record]:
    return [_write_question(job) for job in jobs]


def _write_question(job: tuple[int, str, int, int, int, str, str, str]) -> Record:
    """Write the clip and the target images of one question."""
    number, task, index, seed, level, split, reasoning, out = job
    simulated = simulate_question(seed, task, index, level, split, reasoning)
    clip = _render_clip(simulated, sorted({frame for _, frame in simulated.question.targets}))
    video = os.path.join(out, "videos", f"{number:06d}.mp4")
    write_video(video, clip.frames)
    imagery, targets = [], []
    for k, (i, frame) in enumerate(clip.question.targets):
        imagery.append(os.path.join(out, "images", f"{number:06d}_{k}.png"))
        mask = clip.masks[clip.mask_frames.index(frame)] == i + 1
        write_picture(imagery[-1], highlight(clip.frames[frame], mask))
        targets.append({"object": clip.scene.objects[i].name, "time": frame / FPS})
    source = {
        "generator": "simulation",
        "level": level,
        "seed": seed,
        "task": task,
        "index": index,
        "targets": targets,
        "video_sha256": file_hash(video),
    }
    if task in DSR_TASKS:
        source["split"] = split
    kind = f"{level}" if split == "train" else f"{level}-{split}"
    if reasoning != "paths":
        source["reasoning"] = reasoning
        kind += f"-{reasoning}"
    return Record(
        id=f"sim{kind}-{seed}-{task}-{index}",
        question=clip.question.question,
        answer=clip.question.answer,
        options=clip.options,
        task=task,
        reasoning=clip.question.reasoning or None,
        imagery=imagery,
        video=video,
        source=source,
    )
