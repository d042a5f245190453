"""The raw-video pipeline's questions, held against the simulator's truth.

    python bench/accuracy/annotated_questions.py --level 1 --level 2 --clips 100 --seed 770001
    python bench/accuracy/annotated_questions.py --level 1 --level 2 --clips 100 --seed 770001 --inputs truth

Clips of DSR-Sim (and at level 1 of the basic tasks too) are filmed, and questions asked of their pixels alone, or,
with `--inputs truth`, of exact camera motion and masks: what is then wrong is the questions' own fault. An answer is
right if the functions of `data/questions.py` read the same from the simulator's state; what they call ambiguous is
wrong. An orbit is told as what it is made of: it goes one way and pans the other.
Printed are, for each level and task, the questions, the share that is right with Wilson's 95% interval, the share of
clips with at least one question, and the reasons for which others were refused. Last, options are given as `annotate`
gives them, and a guesser answers that sees no video: of a task's options it takes the one that is right most often
where it is offered, in the questions of the other half of the clips.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import subprocess
import time
from collections import Counter, defaultdict

import numpy as np

from fourdthinker_hf.data import changes, vocabulary
from fourdthinker_hf.data.annotation.camera import Camera, CameraSpan, estimate_camera
from fourdthinker_hf.data.annotation.options import add_options
from fourdthinker_hf.data.annotation.questions import TASKS, Asked, ask
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import Track, find_objects
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.data.simulation import generation, questions
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS
from fourdthinker_hf.data.simulation.questions import QuestionSpec
from fourdthinker_hf.data.simulation.rendering import FPS, Clip, Truth
from fourdthinker_hf.data.simulation.scenes import CAMERA
from fourdthinker_hf.data.vocabulary import OBJECT_DIRECTIONS
from fourdthinker_hf.evaluation.statistics import wilson_interval

ORBITS = {"orbit left": ("truck left", "pan right"), "orbit right": ("truck right", "pan left")}
OFF_AXIS = 35.0  # degrees: so far off its direction something may move, every other being 55 or more away


def shot_of(clip: Clip) -> Shot:
    return Shot("simulated", 0.0, len(clip.frames) / FPS, clip.frames, clip.timestamps)


def exact(clip: Clip) -> tuple[Shot, Camera, list[Track]]:
    """A clip as the stages before would see it if they made no mistake; homographies are those of the ground."""
    truth, size = clip.truth, clip.frames.shape[1]
    focal = clip.scene.focal
    matrix = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    down = np.diag([1.0, -1.0, -1.0])  # the camera's right, down, ahead from its right, up, backward
    ground = []  # (T, 3, 3): ground plane (x, y, 1) to pixels
    for eye, rotation in zip(truth.camera_positions, truth.camera_rotations, strict=True):
        world = down @ rotation.T
        ground.append(matrix @ np.column_stack([world[:, 0], world[:, 1], -world @ eye]))
    steps = np.stack([b @ np.linalg.inv(a) for a, b in itertools.pairwise(ground)])
    spans = [CameraSpan(a, b, tuple(sorted(names)), 1.0) for a, b, names in truth.camera_motions]
    tracks = []
    for i, thing in enumerate(clip.scene.objects):
        moving = np.ptp(truth.positions[:, i], axis=0).max() > 0.3
        tracks.append(Track(clip.masks == i + 1, f"the {thing.name}", 1.0, bool(moving)))
    movers = [track for track in tracks if track.moving]
    rests = sorted((track for track in tracks if not track.moving), key=lambda track: -track.masks.sum())
    return shot_of(clip), Camera(spans, steps), movers + rests[:1]


def which_thing(track: Track, masks: np.ndarray) -> int | None:
    """The object (T, H, W: i + 1 in `masks`) that a track overlaps best, if by a third of both; or that 70% of it lies
    in: it may be a part."""
    within = np.bincount(masks[track.masks], minlength=int(masks.max()) + 1)[1:]
    if not within.any():
        return None
    sizes, best = np.bincount(masks.ravel())[1:], int(within.argmax())
    overlap = within[best] / (sizes[best] + track.masks.sum() - within[best])
    return best if overlap >= 1 / 3 or within[best] >= 0.7 * track.masks.sum() else None


def right(truth: Truth, asked: Asked, things: list[int | None]) -> bool:
    """Whether the simulator's state gives the answer; `things` are the objects asked about."""
    start, end = asked.start, asked.end
    if asked.task == "camera_motion":
        motions = {m for a, b, m in truth.camera_motions if min(b, end) - max(a, start) > 0.3}
        if len(motions) != 1:
            return False
        names = {part for name in motions.pop() for part in ORBITS.get(name, (name,))}
        return names == set(asked.answer.split(" and "))
    if None in things:
        return False
    if asked.task == "object_direction":
        whole = questions.position_from_agent(
            truth, QuestionSpec("abs_dir", CAMERA, things[0], None, start, start, end), things[0]
        )
        step = whole[round(end * FPS)] - whole[round(start * FPS)]  # front, left, up
        axis = dict(zip(OBJECT_DIRECTIONS, ((0, 1, 0), (0, -1, 0), (-1, 0, 0), (1, 0, 0)), strict=True))[asked.answer]
        return bool(step @ axis >= np.cos(np.radians(OFF_AXIS)) * max(np.linalg.norm(step), 0.1))
    if asked.task == "spatial_description":
        span, angles = slice(round(start * FPS), round(end * FPS) + 1), []
        for i in things:
            front, left, _ = questions.position_from_agent(
                truth, QuestionSpec("rel_dir", CAMERA, i, None, 0, start, end), i
            )[span].T
            angles.append(np.arctan2(left, front))
        ahead = np.degrees(angles[0] - angles[1])
        sides = [None if abs(angle) < 1 else questions.PLACE_WORDS[1][angle < 0] for angle in ahead.tolist()]
        return vocabulary.sequence_text(changes.find_runs(sides) or ()) == asked.answer
    task = {"distance_change": "rel_dis", "speed_change": "abs_spd", "faster_object": "abs_spd_comp"}[asked.task]
    other = things[1] if len(things) > 1 else None
    found = questions.find_answer(truth, QuestionSpec(task, CAMERA, things[0], other, start, start, end))
    return vocabulary.sequence_text(found or ()) == asked.answer


def look(job: tuple[int, str, int, int, str, str]) -> tuple[int, list[tuple[str, str, bool]], Counter, dict]:
    seed, task, index, level, split, inputs = job
    clip = generation.simulate_clip(seed, task, index, level, split=split)
    begin = time.perf_counter()
    if inputs == "truth":
        shot, camera, tracks = exact(clip)
    else:
        shot = shot_of(clip)
        camera = estimate_camera(shot)
        tracks = find_objects(shot, camera)
    found = time.perf_counter()
    asked, refused = ask(shot, camera, tracks)
    seconds = {"found": found - begin, "asked": time.perf_counter() - found, "video": shot.end - shot.start}
    things = [which_thing(track, clip.masks) for track in tracks]
    judged = [(a.task, a.answer, right(clip.truth, a, [things[i] for i in a.tracks]), a.question) for a in asked]
    return job, judged, refused, seconds


def jobs(level: int, clips: int, seed: int, inputs: str) -> list[tuple[int, str, int, int, str, str]]:
    """Clips of every task in turn, of both splits; at level 1 half of them of the basic tasks."""
    made = []
    for k in range(clips):
        if level == 1 and k % 2:
            made.append((seed, BASIC_TASKS[k // 2 % 4], k // 8, 1, "train", inputs))
        else:
            number = k // 2 if level == 1 else k
            task = vocabulary.DSR_TASKS[number % 13]
            made.append((seed, task, number // 13, level, ("train", "unseen")[number % 2], inputs))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", type=int, action="append", required=True)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=770001)
    parser.add_argument("--inputs", choices=("pixels", "truth"), default="pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=0, help="wrong questions to list")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{args.clips} clips a level, seed {args.seed}, inputs: {args.inputs}")
    every = []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for level in args.level:
            found = list(pool.imap(look, jobs(level, args.clips, args.seed, args.inputs)))
            show(level, found, args.wrong)
            every += found
    guess(every)


def guess(found: list) -> None:
    """What a guesser gets that knows only what is right how often."""
    records = [
        Record(f"{clip % 2}-{clip}-{k}", question, answer, task=task)
        for clip, (_, items, _, _) in enumerate(found)
        for k, (task, answer, _, question) in enumerate(items)
    ]
    kept = add_options(records)
    hits = []
    for half in "01":
        offered, right_ones = Counter(), Counter()
        for record in (one for one in kept if one.id[0] != half):
            offered.update((record.task, option) for option in record.options)
            right_ones[record.task, record.answer] += 1

        def share(task: str, option: str, offered=offered, right_ones=right_ones) -> float:
            return (right_ones[task, option] + 1) / (offered[task, option] + 4)

        for record in (one for one in kept if one.id[0] == half):
            hits.append(record.answer == max(record.options, key=lambda option: share(record.task, option)))
    low, high = wilson_interval(sum(hits), len(hits))
    chance = np.mean([1 / len(record.options) for record in kept])
    print(
        f"\n{len(kept)} of {len(records)} questions kept for balance; guessed without video: {np.mean(hits):.1%} "
        f"({low:.1%} to {high:.1%}), chance {chance:.1%}"
    )


def show(level: int, found: list, wrong: int) -> None:
    judged = [item for _, items, _, _ in found for item in items]
    counts, answers = defaultdict(list), defaultdict(Counter)
    for task, answer, ok, _ in judged:
        counts[task].append(ok)
        answers[task][answer] += 1
    some = sum(bool(items) for _, items, _, _ in found)
    seconds = {name: sum(item[3][name] for item in found) for name in ("found", "asked", "video")}
    print(
        f"\nlevel {level}: {some} of {len(found)} clips have a question; {seconds['video']:.0f} s of video: "
        f"{seconds['found']:.1f} s to find, {seconds['asked']:.1f} s to ask"
    )
    for task in (*TASKS, "all"):
        oks = counts[task] if task != "all" else [item[2] for item in judged]
        if oks:
            low, high = wilson_interval(sum(oks), len(oks))
            print(
                f"  {task:20} {sum(oks):4} of {len(oks):4} right: {np.mean(oks):6.1%} ({low:.1%} to {high:.1%})  "
                + ", ".join(f"{answer} {num}" for answer, num in answers[task].most_common(9))
            )
    refused = sum((item[2] for item in found), Counter())
    for reason, num in refused.most_common():
        print(f"  refused {num:4}  {reason}")
    for job, items, _, _ in found:
        for _, answer, ok, question in items:
            if not ok and wrong > 0:
                wrong -= 1
                print(f"  wrong: {job[:5]} {question} -> {answer}")


if __name__ == "__main__":
    main()
