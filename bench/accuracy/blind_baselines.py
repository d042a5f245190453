"""Measures what a model that sees no video gets right on DSR-Sim, and how fast questions are made.

    python bench/accuracy/blind_baselines.py --num 1300 --level 1 --level 2 --level 3

The blind baselines answer from the question and the options alone. The text classifier is trained on as many questions
of a distant seed (neighbouring seeds share which answer and which letter comes when). Each accuracy is printed with
Wilson's 95% interval; chance is 25%. Then clips are made in full, in one process, and the time that each part takes is
printed.
"""

import argparse
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.data.simulation import generate_records
from fourdthinker_hf.evaluation.blind_baselines import (
    longest_option,
    majority_letter,
    most_shared_words,
    right_options,
    text_classifier,
)
from fourdthinker_hf.evaluation.statistics import wilson_interval

SEED_DISTANCE = 10_000  # from the seed that is tested to the one for training
BASELINES = {
    "majority letter": majority_letter,
    "longest option": longest_option,
    "shares most words": most_shared_words,
}
# The functions of `generation` that are timed, and what they do.
TIMED_PARTS = {
    "run_physics": "physics",
    "_visible_frames": "masks of candidates",
    "_render_clip": "rendering",
    "write_video": "encoding",
}


def make_question(job: tuple[int, int, int, str]) -> tuple[Record, int]:
    """A question without its clip, and the number of scenes that were drawn for it."""
    seed, number, level, split = job
    task, index = DSR_TASKS[number % 13], number // 13
    simulated = generate_records.simulate_question(seed, task, index, level, split)
    question = simulated.question
    record = Record(f"{seed}-{task}-{index}", question.question, question.answer, simulated.options, task)
    return record, simulated.num_scenes


def report_blind(
    made: list[tuple[Record, int]], training: list[Record], level: int, split: str, seconds: float
) -> None:
    records, num_scenes = [record for record, _ in made], np.array([num for _, num in made])
    print(
        f"\nlevel {level}, split {split}: {len(records)} questions, and as many to train on, in {seconds:.0f} s; "
        f"scenes drawn for one: median {np.median(num_scenes):.0f}, mean {num_scenes.mean():.0f}; "
        f"{(num_scenes > generate_records.SCENES_PER_WORDING).sum()} worded again"
    )
    print("| baseline | right | accuracy | 95% interval |\n| --- | --- | --- | --- |")
    chosen = {name: baseline(records) for name, baseline in BASELINES.items()}
    for name, options in {**chosen, "text classifier": text_classifier(records, training)}.items():
        right = int(np.equal(options, right_options(records)).sum())
        low, high = wilson_interval(right, len(records))
        print(f"| {name} | {right} | {right / len(records):.1%} | {low:.1%} to {high:.1%} |")


def report_throughput(num: int, seed: int, level: int) -> None:
    """Make `num` clips in this process and print the share of the time that each part takes."""
    spent: Counter[str] = Counter()

    def timed(part: str, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - start
            return result

        return call

    originals = {name: getattr(generate_records, name) for name in TIMED_PARTS}
    with tempfile.TemporaryDirectory() as out:
        generate_records.simulate(2, seed, out, level, ["dsr"], workers=1, progress=False)  # makes the renderer
        for name, part in TIMED_PARTS.items():
            setattr(generate_records, name, timed(part, originals[name]))
        start = time.perf_counter()
        generate_records.simulate(num, seed, out, level, ["dsr"], workers=1, progress=False)
        total = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(out).rglob("*.mp4")) / num / 1e3
    for name, function in originals.items():
        setattr(generate_records, name, function)
    spent["drawing scenes, finding answers, rest"] = total - sum(spent.values())
    shares = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in spent.most_common())
    print(f"level {level}: {num / total:.1f} clips a second in one process, {size:.0f} kB a clip; {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1300, help="questions of each level")
    parser.add_argument("--seed", type=int, default=900001)
    parser.add_argument("--level", type=int, action="append")
    parser.add_argument("--split", default="train")
    parser.add_argument("--clips", type=int, default=52, help="clips of each level to make in full; 0 for none")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    levels = arguments.level or (1, 2, 3)
    for level in levels:
        start = time.perf_counter()
        seeds = (arguments.seed, arguments.seed + SEED_DISTANCE)
        jobs = [(seed, number, level, arguments.split) for seed in seeds for number in range(arguments.num)]
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            made = pool.map(make_question, jobs, chunksize=13)
        training = [record for record, _ in made[arguments.num :]]
        report_blind(made[: arguments.num], training, level, arguments.split, time.perf_counter() - start)
    for level in levels if arguments.clips else ():
        report_throughput(arguments.clips, arguments.seed, level)


if __name__ == "__main__":
    main()
