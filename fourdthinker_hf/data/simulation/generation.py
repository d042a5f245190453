"""Simulated 4D scenes: MuJoCo moves objects and the camera, so every question has an exact answer.

Two families of questions. The four kinds of `basic_scenes.py`, on which the bundled checkpoint was trained, at level 1. And
DSR-Sim: the 13 sub-tasks of DSR-Bench (`questions.py`, `non_template_questions.py`), at three levels of scenes (`scenes.py`):

| level | objects | motion | clip | frames |
| --- | --- | --- | --- | --- |
| 1 | 2 or 3, untextured | the camera or the objects, nothing hidden | 4 s | 112 x 112 |
| 2 | 2 to 4 | both together, falls and pushes; seen in 80% of the span | 5 to 10 s | 224 x 224 |
| 3 | 2 to 6 | several camera moves, up to three runs; seen in 60% of the span | 2 to 20 s | 224 x 224 |

All at 8 fps. The wording and the wanted answer are drawn first, apart from each other, and then scenes until one shows
that answer clearly: so nothing in a question's text tells its answer. Question `index` of a task depends on (seed,
task, index, level, split) alone. Split "unseen" has shapes, colours and speeds that "train" never has.
"""

import functools
import multiprocessing
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..media import highlight, write_video
from ..records import Record, write_records
from ..vocabulary import DSR_TASKS, NON_TEMPLATE_TASK, sequence_text, with_distractors
from . import basic_scenes, non_template_questions, questions
from .basic_scenes import ALL_TASKS as PLAIN_TASKS
from .basic_scenes import BINS, COLOURS, TASKS
from .physics import predict, run, template_model
from .questions import Ask
from .rendering import FPS, Clip, Question, Studio, Truth
from .scene_sampling import plan, stage
from .scenes import CAMERA, FRONTED, SIZES, SPLITS, World

__all__ = [
    "ALL_TASKS",
    "BINS",
    "COLOURS",
    "DSR_TASKS",
    "SPLITS",
    "TASKS",
    "Clip",
    "check_request",
    "clip_from_record",
    "compose",
    "highlight",
    "simulate",
    "simulate_clip",
    "write_video",
]

ALL_TASKS = (*PLAIN_TASKS, *DSR_TASKS)
LEVELS = (1, 2, 3)
CHECKED = 4  # every 4th frame is looked at for what is seen: twice a second
REASONINGS = ("paths", "pictures", "places")
SEEN_SHARE = {1: 1.0, 2: 0.8, 3: 0.6}  # of the moments of a span
SEEN_PART = {1: 0.5, 2: 0.3, 3: 0.3}  # of an object's outline, at such a moment
SEEN_PIXELS = 12  # of 112 x 112
LEAST_SIZE = {1: 0.045, 2: 0.035, 3: 0.03}  # half height over the picture's, for what is asked about
FRONT_SIZE = 0.045  # the same, for what has a front to be seen
TRIES = 400  # scenes for one wording, before another is drawn


def expand_tasks(tasks: Sequence[str] | None, level: int) -> tuple[str, ...]:
    """Names given, "dsr" for all 13, or by default the plain tasks at level 1 and all 13 at the others."""
    if tasks is None:
        return TASKS if level == 1 else DSR_TASKS
    return tuple(name for task in tasks for name in (DSR_TASKS if task == "dsr" else (task,)))


def check_request(tasks: Sequence[str], level: int, split: str, reasoning: str = "paths") -> None:
    """Raise a `ValueError` that says what of a request there is not."""
    if level not in LEVELS:
        raise ValueError(f"level must be 1, 2 or 3 (is {level})")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if reasoning not in REASONINGS:
        raise ValueError(f"unknown reasoning {reasoning!r}; it is paths, pictures or places")
    if not tasks:
        raise ValueError("no tasks given")
    for task in tasks:
        if task not in ALL_TASKS:
            raise ValueError(f"unknown task {task!r}; the tasks are dsr, {', '.join(ALL_TASKS)}")
        if task in PLAIN_TASKS and (level, split) != (1, "train"):
            raise ValueError(f"task {task!r} is at level 1, split train, only (is level {level}, split {split})")
        if reasoning != "paths" and task not in TASKS:
            raise ValueError(f"reasoning in {reasoning} is for {', '.join(TASKS)} (tasks hold {task})")


# One question


@dataclass(frozen=True)
class Composed:
    """A question and the scene that shows it; `physics` is what a studio films, `tries` the scenes drawn for it."""

    scene: Any
    truth: Truth
    question: Question
    options: list[str] | None
    physics: tuple[Any, np.ndarray]
    tries: int = 0


def compose(
    seed: int, task: str, index: int = 0, level: int = 1, split: str = "train", reasoning: str = "paths"
) -> Composed:
    """Find question `index` of a task, simulated but not filmed."""
    check_request([task], level, split, reasoning)
    if task in PLAIN_TASKS:
        rng = np.random.default_rng([seed, zlib.crc32(task.encode()), index])
        made = Composed(*basic_scenes.compose(rng, task, index))
        if reasoning != "paths":
            write = basic_scenes.pictured if reasoning == "pictures" else basic_scenes.placed
            made = replace(made, question=write(made.scene, made.truth, task, made.question))
        return made
    key = zlib.crc32(f"{task} {level} {split}".encode())
    rng, turn = np.random.default_rng([seed, key, index]), index + (seed + key) % 997  # tasks start at other classes
    made = _varied(rng, turn, level, split) if task == NON_TEMPLATE_TASK else _template(rng, task, turn, level, split)
    return replace(made, truth=_cut(made.truth, made.scene.num_frames))


def _cut(truth: Truth, frames: int) -> Truth:
    arrays = {name: value[:frames] for name, value in vars(truth).items() if isinstance(value, np.ndarray)}
    return replace(truth, **arrays)


def _turn(turn: int, num: int) -> tuple[int, int]:
    """Class and letter: every class in turn, and with each class every letter."""
    return turn % num, (turn % num + turn // num) % 4


def _template(rng: np.random.Generator, task: str, turn: int, level: int, split: str) -> Composed:
    drawn, known = 0, None
    while True:
        ask, cast = plan(rng, task, level, split)
        possible = questions.classes(ask, level)
        known = known or possible
        if possible != known:  # another wording keeps the class: hard ones stay as often
            continue
        which, letter = _turn(turn, len(known))
        names, wanted = [f"{colour} {shape}" for colour, shape in cast.names], known[which]
        for _ in range(TRIES):
            drawn += 1
            world = stage(rng, ask, cast, wanted)
            judge = functools.partial(questions.answer, ask=ask)
            found = world and _show(world, judge, wanted, *_moments(ask, world))
            targets = found and _targets(ask, found[2])
            if not targets:
                continue
            truth, physics, _ = found
            text = questions.reasoning(truth, ask, names, wanted, targets)
            right = sequence_text(wanted)
            options = with_distractors(rng, right, list(map(sequence_text, known)), letter)
            asked = Question(questions.wording(ask, names), right, text, targets)
            return Composed(world, truth, asked, options, physics, drawn)


def _moments(ask: Ask, world: World) -> tuple[dict[int, list[int]], bool]:
    """For each object, the frames at which it should be seen; and whether free bodies may be predicted."""
    span = ask.span
    begin = span.start if ask.kind != "dir_pred" else max(0, round(ask.end * FPS) - 2 * FPS + CHECKED)
    frames = sorted({*range(begin, span.stop, CHECKED), min(span.stop, world.num_frames) - 1})
    needed = {i: frames for i in ask.asked}
    if ask.x == CAMERA:  # the camera turns: something has to be in sight now and then
        needed[0] = [frames[0], frames[-1]]
    if ask.agent != CAMERA:
        needed[ask.agent] = frames if ask.follows else [round(ask.at * FPS)]
    return needed, all(world.things[i].legs for i in ask.asked)


def _varied(rng: np.random.Generator, turn: int, level: int, split: str) -> Composed:
    kinds = non_template_questions.VARIED[level]
    kind, turn = kinds[turn % len(kinds)], turn // len(kinds)
    known = non_template_questions.classes(kind, level, split)
    which, letter = _turn(turn, max(1, len(known)))
    word, drawn = known[which] if known else None, 0
    while True:
        cast = non_template_questions.cast_for(rng, kind, word, level, split)
        for _ in range(TRIES):
            drawn += 1
            world = non_template_questions.propose(rng, kind, word, cast)
            judge = functools.partial(non_template_questions.judge, kind, world)
            guess = non_template_questions.guess(kind, world)
            found = guess and _show(
                world, judge, word, non_template_questions.to_be_seen(kind, guess, world, CHECKED), False
            )
            if not found:
                continue
            truth, physics, _ = found
            right, names = judge(truth), [thing.name for thing in world.things]
            options = with_distractors(
                rng, right, non_template_questions.distractors(rng, kind, right, world, cast), letter
            )
            asked = Question(non_template_questions.wording(kind, names), right, "", ())
            return Composed(world, truth, asked, options, physics, drawn)


def _show(
    world: World, judge: Callable[[Truth], Any], wanted: Any, needed: dict[int, list[int]], predictable: bool
) -> tuple[Truth, tuple[Any, np.ndarray], dict[int, list[int]]] | None:
    """The world's truth and physics, and when each needed object is seen, if it shows the wanted answer; else None.

    Cheap tests come first: nothing overlaps, what is needed is within the picture, the answer as predicted.
    """
    expected = predict(world)
    if not _apart(world, expected, needed) or not _within(world, expected, needed):
        return None
    if predictable and judge(expected) != wanted:
        return None
    truth, physics = run(world)
    found = judge(truth)
    if found is None or (wanted is not None and found != wanted) or not _within(world, truth, needed):
        return None
    seen = _seen(world, truth, physics, needed)
    if not all(_often(frames, seen[i], SEEN_SHARE[world.level]) for i, frames in needed.items()):
        return None
    return truth, physics, seen


def _often(frames: list[int], seen: list[int], share: float) -> bool:
    """Whether `share` of `frames` are among the seen, and half of each third of them, so that no run is lost."""
    thirds = np.array_split(frames, 3) if len(frames) > 3 else [frames]
    return len(seen) >= share * len(frames) and all(np.isin(third, seen).mean() >= 0.5 for third in thirds)


def _apart(world: World, truth: Truth, needed: dict[int, list[int]]) -> bool:
    """Bodies do not overlap at first, driven ones never; at level 1 nothing touches."""
    for i, first in enumerate(world.things):
        for j in range(i):
            second = world.things[j]
            gap = np.linalg.norm(truth.positions[:, i, :2] - truth.positions[:, j, :2], axis=-1)
            least = gap.min() if first.legs and second.legs else gap[0]
            if least < 1.1 * (first.reach + second.reach):
                return False
    return True


def _within(world: World, truth: Truth, needed: dict[int, list[int]]) -> bool:
    """What is needed is within the picture, before the camera and large enough, as often as it should be seen."""
    for i, frames in needed.items():
        radius = world.focal * world.things[i].half / np.maximum(truth.depths[frames, i], 0.3)
        inside = np.abs(truth.centres[frames, i] - world.size / 2).max(-1) < world.size / 2 - 0.6 * radius
        least = max(LEAST_SIZE[world.level], FRONT_SIZE * (world.things[i].shape in FRONTED)) * world.size
        if (inside & (radius > least) & (truth.depths[frames, i] > 0.5)).mean() < SEEN_SHARE[world.level]:
            return False
    return True


@functools.cache
def _studio(level: int) -> Studio:
    return Studio(template_model(level), SIZES[level])


@functools.cache
def _plain_studio() -> Studio:
    return Studio(basic_scenes.template(), basic_scenes.SIZE)


def _seen(
    world: World, truth: Truth, physics: tuple[Any, np.ndarray], needed: dict[int, list[int]]
) -> dict[int, list[int]]:
    """Which of the needed frames show each object, by the rendered masks."""
    frames = sorted({frame for wanted in needed.values() for frame in wanted})
    if not frames:
        return {}
    small = SIZES[1]
    masks = _studio(world.level).shoot(*physics, truth, [], frames, size=small)[1]
    level, seen = world.level, {}
    for i, wanted in needed.items():
        area = (
            np.pi
            * (world.focal * small / world.size * world.things[i].half / np.maximum(truth.depths[:, i], 0.3)) ** 2
        )
        shown = {frame: int((masks[k] == i + 1).sum()) for k, frame in enumerate(frames)}
        seen[i] = [frame for frame in wanted if shown[frame] >= max(SEEN_PIXELS, SEEN_PART[level] * area[frame])]
    return seen


def _targets(ask: Ask, seen: dict[int, list[int]]) -> tuple[tuple[int, int], ...] | None:
    """What is pictured: each asked object early and late in the span, where it is seen; if the camera is, object 0."""
    things = ask.asked or (0,)
    if not all(seen[i] for i in things):
        return None
    if len(things) == 1:
        frames = seen[things[0]]
        return tuple((things[0], frame) for frame in sorted({frames[0], frames[-1]}))
    return tuple((i, seen[i][-1]) for i in things)


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
    """Simulate and render question `index` of `task`: the same clip on every call; masks of all frames by default."""
    made = compose(seed, task, index, level, split, reasoning)
    frames = range(len(made.truth.positions))
    return _film(made, frames if mask_frames is None else mask_frames, depth)


def _film(made: Composed, mask_frames: Sequence[int], depth: bool = False) -> Clip:
    frames = range(len(made.truth.positions))
    camera = _studio(made.scene.level) if isinstance(made.scene, World) else _plain_studio()
    pictures, masks, deep = camera.shoot(*made.physics, made.truth, frames, mask_frames, depth)
    times = np.arange(len(frames)) / FPS
    return Clip(made.scene, made.truth, made.question, made.options, pictures, times, tuple(mask_frames), masks, deep)


def clip_from_record(record: Record, depth: bool = False) -> Clip:
    """Simulate the clip of a record again, with object masks for every frame."""
    source = record.source
    if not source or source.get("generator") != "simulation":
        raise ValueError(f"record {record.id} does not come from the simulation")
    which = [source[name] for name in ("seed", "task", "index", "level")]
    more = {name: source[name] for name in ("split", "reasoning") if name in source}
    return simulate_clip(*which, depth=depth, **more)


# Files


def _make(job: tuple[int, str, int, int, int, str, str, str]) -> Record:
    """Write the clip and target frames of one question."""
    number, task, index, seed, level, split, reasoning, out = job
    made = compose(seed, task, index, level, split, reasoning)
    clip = _film(made, sorted({frame for _, frame in made.question.targets}))
    video = os.path.join(out, "videos", f"{number:06d}.mp4")
    write_video(video, clip.frames)
    imagery, targets = [], []
    for k, (thing, frame) in enumerate(clip.question.targets):
        imagery.append(os.path.join(out, "images", f"{number:06d}_{k}.png"))
        mask = clip.masks[clip.mask_frames.index(frame)] == thing + 1
        Image.fromarray(highlight(clip.frames[frame], mask)).save(imagery[-1])
        targets.append({"object": clip.scene.things[thing].name, "time": frame / FPS})
    source = {
        "generator": "simulation",
        "level": level,
        "seed": seed,
        "task": task,
        "index": index,
        "targets": targets,
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
    """Write `num` questions, tasks in turn, to `out/records.jsonl` with `videos/` and `images/`; returns that path.

    Question i depends on (seed, i, tasks, level, split) alone: not on `num`, not on `workers` (default: one per core).
    With `reasoning="pictures"` the plain tasks' reasoning writes no coordinates: the same clips, questions, answers
    and options, with two or three target frames for each object asked about. With `"places"` it pictures the same
    first, and then writes where the objects are in what was pictured.
    """
    out = Path(out).absolute()
    tasks = expand_tasks(tasks, level)
    check_request(tasks, level, split, reasoning)
    for folder in ("videos", "images"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(i, tasks[i % len(tasks)], i // len(tasks), seed, level, split, reasoning, str(out)) for i in range(num)]
    workers = workers or min(os.cpu_count() or 1, max(1, num // 16))  # a worker costs seconds to start
    bar = functools.partial(tqdm, total=num, unit="clip", disable=not progress)
    if workers == 1:
        records = list(bar(map(_make, jobs)))
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            records = list(bar(pool.imap(_make, jobs, chunksize=8)))
    write_records(out / "records.jsonl", records)
    return out / "records.jsonl"
