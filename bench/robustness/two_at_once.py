"""Starts two runs of a command into one place at once, and compares what they leave with that of a run left alone.

    python bench/robustness/two_at_once.py
    python bench/robustness/two_at_once.py --pairs 20 --command evaluate --command sft

The second run starts at a random moment of the first one. Right is a pair of which at least one ends with status 0,
the other also or with status 2 and no traceback, and whose files are those of one run. Of the pairs sft-grpo and
grpo-sft, which are two commands in one folder, exactly one ends with status 0. Exits with 1 if any was not right.

Of 4 pairs of each command, 2 of annotate and evaluate, on a loaded machine of two cores, all were right. One run was
refused, except of simulate and sft where the first had ended, and of maps and contact-sheet, which have no claim: the
one that ends last replaces the file.
"""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from kills import GRPO, MODEL, ROOT, SIMULATE, arguments, content, finish, import_for_runs, start

SFT = """--model_name_or_path {model} --records {records} --gradient_checkpointing false --max_steps 2 --save_steps 1
--per_device_train_batch_size 2 --learning_rate 1e-3 --use_cpu true --bf16 false --report_to none --logging_steps 1
--output_dir"""
COMMANDS = {
    "convert": "",
    "merge": "",
    "simulate": "",
    "annotate": "annotate {video} --workers 1 --out",
    "evaluate": "evaluate --benchmark {records} --batch-size 2 --max-new-tokens 16 --out",
    "filter": "filter {records} --samples 2 --batch-size 2 --max-new-tokens 16 --out",
    "maps": "maps --benchmark {records} --num 2 --out",
    "contact-sheet": "contact-sheet {records}",
    "sft": SFT,
    "grpo": GRPO,
}
PAIRS = {**{name: (name, name) for name in COMMANDS}, "sft-grpo": ("sft", "grpo"), "grpo-sft": ("grpo", "sft")}
WITH_TIMES = {  # files that tell how long the run took: they are left out
    "annotate": (".json", ".html"),
    "evaluate": ("report.json", "report.md"),
}
SUFFIXES = {"filter": ".jsonl", "contact-sheet": ".png"}  # of the commands that write a file


def command_line(name: str, inputs: Path) -> list[str]:
    """Program and arguments up to the output."""
    if name in ("convert", "merge", "simulate"):
        return arguments(name, inputs)
    records = inputs / "records/records.jsonl"
    given = COMMANDS[name].format(model=MODEL, records=records, video=inputs / "records/videos/000000.mp4").split()
    return [str(ROOT / f"train/{name}.py"), *given] if name in ("sft", "grpo") else ["fourdthinker", *given]


def trial(
    commands: list[list[str]], out: Path, logs: list[Path], seconds: float, expected: dict[str, str] | None
) -> str:
    """Starts the second command so many seconds after the first: "right", or what was wrong."""
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    first = start(commands[0], out, logs[0])
    time.sleep(seconds)
    second = start(commands[1], out, logs[1])
    statuses = [finish(first), finish(second)]
    wanted = [[0, 2], [2, 0]] + [[0, 0]] * (commands[0] == commands[1])
    if statuses not in wanted:
        return f"they ended with {statuses}"
    for status, log in zip(statuses, logs, strict=True):
        if "Traceback" in log.read_text():
            return f"the one that ended with {status} has a traceback"
    found = content(out)
    names = [name for name in {**found, **(expected or {})} if expected and found.get(name) != expected.get(name)]
    if names := [name for name in names if not name.endswith(WITH_TIMES.get(commands[0][1], ()))]:
        return f"other files: {', '.join(names)}"
    return f"right, {statuses}"


def main(
    pairs: Annotated[int, typer.Option(min=1, help="Number of pairs of each command.")] = 20,
    command: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(PAIRS)}. Repeat the flag. All by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the moments.")] = 0,
) -> None:
    import_for_runs()
    folder, is_wrong = Path(tempfile.mkdtemp()), False
    inputs, logs = folder / "inputs", [folder / "log0", folder / "log1"]
    inputs.mkdir()
    finish(start(["fourdthinker", *SIMULATE.format(10).split()], inputs / "records", logs[0]))
    for name in command or PAIRS:
        commands = [command_line(part, inputs) for part in dict.fromkeys(PAIRS[name])]
        out = folder / "place" / f"out{SUFFIXES.get(name, '')}"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        began = time.monotonic()
        if status := finish(start(commands[0], out, logs[0])):
            sys.exit(f"{name} ended with status {status}:\n{logs[0].read_text()}")
        duration, expected = time.monotonic() - began, content(out) if len(commands) == 1 else None
        counts, rng = Counter(), np.random.default_rng(seed)
        for number in range(pairs):
            seconds = 0 if number == 0 else duration * rng.uniform(0, 0.9)
            result = trial((commands * 2)[:2], out, logs, seconds, expected)
            counts[result] += 1
            if not result.startswith("right"):
                is_wrong = True
                print(f"{name}, {seconds:.1f} s apart: {result}", *(log.read_text()[-1500:] for log in logs), sep="\n")
        print(f"{name} ({duration:.1f} s): {dict(counts)}", flush=True)
    shutil.rmtree(folder)
    sys.exit(is_wrong)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    typer.run(main)
