"""DSR-Sim measured: what a model that sees no video gets, and how fast questions are made.

    python bench/accuracy/blind_baselines.py --num 1300 --level 1 --level 2 --level 3

Blind baselines answer from question and options alone: the most frequent letter, the longest option, the option that
shares most words with the others, and a logistic regression on words, trained on as many questions of a seed far
away (neighbouring seeds share which class and letter comes when). Each is printed with Wilson's 95% interval, beside
the chance of 25%. Then clips are made in full, in one process, and the seconds are printed by what they went to.
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

from fourdthinker_hf.data.simulation import generation
from fourdthinker_hf.data.simulation.generation import DSR_TASKS
from fourdthinker_hf.evaluation.statistics import wilson_interval


def question(job: tuple[int, int, int, str]) -> dict:
    """Text, options, the right letter's place, and how many scenes it took; nothing is filmed."""
    seed, number, level, split = job
    task, index = DSR_TASKS[number % 13], number // 13
    made = generation.compose(seed, task, index, level, split)
    right = made.options.index(made.question.answer)
    return {
        "task": task,
        "question": made.question.question,
        "options": made.options,
        "right": right,
        "tries": made.tries,
        "again": made.tries > generation.TRIES,
    }


FAR = 10_000  # from the seed tested to the seed trained on

# Blind baselines: each gives a place 0 to 3 per question


def majority_letter(rows: list[dict]) -> list[int]:
    """The letter that is right most often, told from the answers themselves: the best that one letter can do."""
    best = Counter(row["right"] for row in rows).most_common(1)[0][0]
    return [best] * len(rows)


def longest_option(rows: list[dict]) -> list[int]:
    return [int(np.argmax([len(option) for option in row["options"]])) for row in rows]


def most_shared(rows: list[dict]) -> list[int]:
    """The option whose words are most often in the other options."""

    def score(options: list[str], k: int) -> float:
        words = options[k].split()
        return sum(word in other.split() for word in words for other in options) / len(words)

    return [int(np.argmax([score(row["options"], k) for k in range(4)])) for row in rows]


def _features(row: dict, k: int) -> list[str]:
    option, words = row["options"][k], row["options"][k].replace(",", "").split()
    asked = set(row["question"].replace(",", "").replace("?", "").split())
    alone = [f"place {k}", f"text {option}", *words, f"length {len(words)}"]
    others = [f"{option} beside {other}" for other in row["options"] if other != option]
    return alone + others + [f"{word} when asked {a}" for word in {*words, option} for a in asked]


def classifier(rows: list[dict], training: list[dict], epochs: int = 60) -> list[int]:
    """Logistic regression over the four options, on words, words beside words and words of the question; trained on
    other questions than it answers. (Not on half of these: classes and letters are balanced over a whole set, so a
    half has too few of what its other has too many of, and that alone puts a classifier below chance.)"""
    names: dict[str, int] = {}
    sets = [
        [[[names.setdefault(name, len(names)) for name in _features(row, k)] for k in range(4)] for row in some]
        for some in (training, rows)
    ]
    weights = torch.nn.EmbeddingBag(len(names), 1, mode="sum")
    torch.nn.init.zeros_(weights.weight)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=0.02, weight_decay=0.1)

    def scores(bags: list[list[list[int]]]) -> torch.Tensor:
        flat = [bag for options in bags for bag in options]
        starts = torch.tensor([0, *map(len, flat[:-1])]).cumsum(0)
        return weights(torch.tensor([name for bag in flat for name in bag]), starts).view(-1, 4)

    right = torch.tensor([row["right"] for row in training])
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores(sets[0]), right).backward()
        optimizer.step()
    return scores(sets[1]).argmax(-1).tolist()


BASELINES = {"majority letter": majority_letter, "longest option": longest_option, "shares most words": most_shared}


def report_blind(rows: list[dict], training: list[dict], level: int, split: str, took: float) -> None:
    again = sum(row["again"] for row in rows)
    tries = np.array([row["tries"] for row in rows])
    print(
        f"\nlevel {level}, split {split}: {len(rows)} questions, and as many to train on, in {took:.0f} s; scenes "
        f"drawn for one: median {np.median(tries):.0f}, mean {tries.mean():.0f}; {again} worded again"
    )
    print("| baseline | right | accuracy | 95% interval |\n| --- | --- | --- | --- |")
    given = {name: baseline(rows) for name, baseline in BASELINES.items()}
    for name, places in {**given, "text classifier": classifier(rows, training)}.items():
        right = sum(int(a == row["right"]) for a, row in zip(places, rows, strict=True))
        low, high = wilson_interval(right, len(rows))
        print(f"| {name} | {right} | {right / len(rows):.1%} | {low:.1%} to {high:.1%} |")


# Throughput


def throughput(num: int, seed: int, level: int) -> None:
    """Make `num` clips in this process; print seconds by part."""
    spent: Counter[str] = Counter()

    def timed(name: str, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        return call

    parts = {"run": "physics", "_seen": "masks of candidates", "_film": "rendering", "write_video": "encoding"}
    kept = {name: getattr(generation, name) for name in parts}
    with tempfile.TemporaryDirectory() as out:
        generation.simulate(2, seed, out, level, ["dsr"], workers=1, progress=False)  # opens the studio
        for name, part in parts.items():
            setattr(generation, name, timed(part, kept[name]))
        start = time.perf_counter()
        generation.simulate(num, seed, out, level, ["dsr"], workers=1, progress=False)
        total = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(out).rglob("*.mp4")) / num / 1e3
    for name, function in kept.items():
        setattr(generation, name, function)
    spent["proposing, judging, rest"] = total - sum(spent.values())
    shares = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in spent.most_common())
    print(f"level {level}: {num / total:.1f} clips a second in one process, {size:.0f} kB a clip; {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=900001)
    parser.add_argument("--level", type=int, action="append")
    parser.add_argument("--split", default="train")
    parser.add_argument("--clips", type=int, default=52, help="made in full for the throughput; 0 for none")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    for level in arguments.level or (1, 2, 3):
        start = time.perf_counter()
        jobs = [
            (arguments.seed + other, number, level, arguments.split)
            for other in (0, FAR)
            for number in range(arguments.num)
        ]
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            made = pool.map(question, jobs, chunksize=13)
        rows, training = made[: arguments.num], made[arguments.num :]
        report_blind(rows, training, level, arguments.split, time.perf_counter() - start)
    for level in (arguments.level or (1, 2, 3)) if arguments.clips else ():
        throughput(arguments.clips, arguments.seed, level)


if __name__ == "__main__":
    main()
