"""Measures how many questions of `annotate` have the right answer, on simulated clips.

    python bench/accuracy/annotated_questions.py --level 1 --level 2 --clips 100 --seed 770001
    python bench/accuracy/annotated_questions.py --level 1 --level 2 --clips 100 --seed 770001 --inputs truth

The clips are those of DSR-Sim, and at level 1 half of them are those of the basic tasks. Questions are asked of their
pixels or, with `--inputs truth`, of the exact camera motion and masks: then only the questions can be at fault.
`fourdthinker_hf/data/ground_truth.py` says which answers are right.

For each level and task it prints the number of questions and the share that is right with Wilson's 95% interval, and
for each level the clips with a question and the reasons for which questions were refused. Then the questions get their
options as in `annotate` and are answered without the video: of the options, the one is chosen that is right most often
when it is offered for this task in the other half of the clips.
"""

import argparse
import multiprocessing
import os
import platform
import subprocess
import time
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from fourdthinker_hf.data.annotation.answer_options import add_options
from fourdthinker_hf.data.annotation.camera_motion import estimate_camera_motion
from fourdthinker_hf.data.annotation.motion_tracking import find_moving_objects
from fourdthinker_hf.data.annotation.questions import TASKS, AnnotatedQuestion, make_questions
from fourdthinker_hf.data.ground_truth import clip_to_shot, is_answer_right, match_object, true_annotation
from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS
from fourdthinker_hf.data.simulation.generate_records import simulate_clip
from fourdthinker_hf.evaluation.statistics import wilson_interval


class Job(NamedTuple):
    seed: int
    task: str
    index: int
    level: int
    split: str
    inputs: str  # "pixels" or "truth"


class Result(NamedTuple):
    job: Job
    judged: list[tuple[AnnotatedQuestion, bool]]  # whether the answer is right
    refused: Counter  # by reason
    seconds: dict[str, float]


def ask_about_clip(job: Job) -> Result:
    clip = simulate_clip(job.seed, job.task, job.index, job.level, split=job.split)
    start = time.perf_counter()
    shot = clip_to_shot(clip)
    if job.inputs == "truth":
        camera, tracks = true_annotation(clip)
    else:
        camera = estimate_camera_motion(shot)
        tracks = find_moving_objects(shot, camera)
    tracked = time.perf_counter()
    questions, refused = make_questions(shot, camera, tracks)
    seconds = {"tracking": tracked - start, "asking": time.perf_counter() - tracked, "video": shot.end - shot.start}
    objects = [match_object(track, clip.masks) for track in tracks]
    judged = [
        (question, is_answer_right(clip.truth, question, [objects[i] for i in question.tracks]))
        for question in questions
    ]
    return Result(job, judged, refused, seconds)


def make_jobs(level: int, num_clips: int, seed: int, inputs: str) -> list[Job]:
    """Clips of every task in turn, of both splits; at level 1 half of them of the basic tasks."""
    jobs = []
    for k in range(num_clips):
        if level == 1 and k % 2:
            jobs.append(Job(seed, BASIC_TASKS[k // 2 % 4], k // 8, 1, "train", inputs))
        else:
            number = k // 2 if level == 1 else k
            split = ("train", "unseen")[number % 2]
            jobs.append(Job(seed, DSR_TASKS[number % 13], number // 13, level, split, inputs))
    return jobs


def print_level(level: int, results: list[Result], num_wrong: int) -> None:
    """Print the accuracy of each task at a level, the reasons of refusals, and `num_wrong` wrong questions."""
    judged = [item for result in results for item in result.judged]
    correct, answers = defaultdict(list), defaultdict(Counter)
    for question, is_right in judged:
        for task in (question.task, "all"):
            correct[task].append(is_right)
        answers[question.task][question.answer] += 1
    seconds = sum((Counter(result.seconds) for result in results), Counter())
    print(
        f"\nlevel {level}: {sum(bool(result.judged) for result in results)} of {len(results)} clips have a question; "
        f"{seconds['video']:.0f} s of video: {seconds['tracking']:.1f} s to find camera motion and objects, "
        f"{seconds['asking']:.1f} s to ask"
    )
    for task in (*TASKS, "all"):
        if correct[task]:
            num_right, num = sum(correct[task]), len(correct[task])
            low, high = wilson_interval(num_right, num)
            counts = ", ".join(f"{answer} {count}" for answer, count in answers[task].most_common(9))
            share = f"{num_right / num:6.1%} ({low:.1%} to {high:.1%})"
            print(f"  {task:20} {num_right:4} of {num:4} right: {share}  {counts}")
    for reason, num in sum((result.refused for result in results), Counter()).most_common():
        print(f"  refused {num:4}  {reason}")
    wrong = [(result.job, question) for result in results for question, is_right in result.judged if not is_right]
    for job, question in wrong[:num_wrong]:
        print(f"  wrong: {tuple(job[:5])} {question.question} -> {question.answer}")


def print_accuracy_without_video(results: list[Result]) -> None:
    records = [
        Record(f"{clip % 2}-{clip}-{k}", question.question, question.answer, task=question.task)
        for clip, result in enumerate(results)
        for k, (question, _) in enumerate(result.judged)
    ]
    kept = add_options(records)
    correct = []
    for half in "01":
        num_offered, num_right = Counter(), Counter()
        for record in kept:
            if record.id[0] != half:
                num_offered.update((record.task, option) for option in record.options)
                num_right[record.task, record.answer] += 1
        for record in kept:
            if record.id[0] == half:
                keys = [(record.task, option) for option in record.options]
                shares = [(num_right[key] + 1) / (num_offered[key] + 4) for key in keys]
                correct.append(record.answer == record.options[np.argmax(shares)])
    low, high = wilson_interval(sum(correct), len(correct))
    chance = np.mean([1 / len(record.options) for record in kept])
    print(
        f"\n{len(kept)} of {len(records)} questions are kept for balance; right without the video: "
        f"{np.mean(correct):.1%} ({low:.1%} to {high:.1%}), chance {chance:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=int, action="append", required=True)
    parser.add_argument("--clips", type=int, default=100, help="clips of each level")
    parser.add_argument("--seed", type=int, default=770001)
    parser.add_argument("--inputs", choices=("pixels", "truth"), default="pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=0, help="wrong questions to print for each level")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{args.clips} clips a level, seed {args.seed}, inputs: {args.inputs}")
    all_results = []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for level in args.level:
            results = list(pool.imap(ask_about_clip, make_jobs(level, args.clips, args.seed, args.inputs)))
            print_level(level, results, args.wrong)
            all_results += results
    print_accuracy_without_video(all_results)


if __name__ == "__main__":
    main()
