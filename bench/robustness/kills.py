"""Kills commands at random moments, starts them again, and compares what they leave with that of a run left alone.

    python bench/robustness/kills.py
    python bench/robustness/kills.py --kills 50 --command convert --command merge

Each run is a process that is forked from this one after it has imported PyTorch, transformers and TRL, so that a run
takes seconds and the moment of the kill (SIGKILL, of the main process alone) is one of its own work. Right is a kill
after which no process lives on for more than 10 s, no result is there that looks finished but is not, and the same
command makes the same files and leaves nothing else. Of a training the times in its logs are left out. Exits with 1 if
any was not right.

All were right of 60 kills of convert, 20 of merge, 20 of simulate and 20 of grpo, each before the run's end.
"""

import hashlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import typer  # noqa: E402

MODEL = ROOT / "checkpoints/4dthinker-tiny"
SIMULATE = "simulate --num {} --seed 5 --out"
GRPO = """--model_name_or_path {model} --records {records} --gradient_checkpointing false --max_steps 3 --save_steps 1
--save_total_limit 2 --per_device_train_batch_size 4 --num_generations 4 --max_completion_length 64 --temperature 1.5
--learning_rate 1e-3 --weight_decay 0.1 --use_cpu true --bf16 false --report_to none --logging_steps 1 --output_dir"""
COMMANDS = {  # each with the earliest moment of a kill, as a share of the run's time
    "convert": 0.3,
    "merge": 0.3,
    "simulate": 0.0,
    "grpo": 0.3,
}
FINISHED = "right, it was finished"
RUN_FILES = ("training_args.bin", "README.md")  # they name times, and from where the run went on


def write_published(folder: Path) -> None:
    """The bundled checkpoint with the config of a published one."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.py", "evaluation", "*decoder*"))
    raw = json.loads((folder / "config.json").read_text())
    del raw["auto_map"]
    raw |= {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(raw))


def write_adapter(folder: Path) -> None:
    """A random adapter of the bundled checkpoint."""
    import torch
    from peft import LoraConfig, get_peft_model

    from fourdthinker_hf.checkpoints import load_network
    from fourdthinker_hf.training.lora import LORA_TARGETS

    torch.manual_seed(0)
    model = get_peft_model(load_network(MODEL), LoraConfig(r=4, target_modules=LORA_TARGETS, init_lora_weights=False))
    model.save_pretrained(folder)


def arguments(name: str, inputs: Path) -> list[str]:
    """Program and arguments of a command up to its output, with the inputs that it needs."""
    if name == "convert":
        write_published(inputs / "published")
        return ["fourdthinker", "convert", str(inputs / "published")]
    if name == "merge":
        write_adapter(inputs / "adapter")
        return ["fourdthinker", "merge", str(inputs / "adapter")]
    if name == "simulate":
        return ["fourdthinker", *SIMULATE.format(9).split()]
    if not (inputs / "records").exists():
        finish(start(["fourdthinker", *SIMULATE.format(4).split()], inputs / "records", inputs / "log"))
    given = GRPO.format(model=MODEL, records=inputs / "records/records.jsonl")
    return [str(ROOT / "train/grpo.py"), *given.split()]


def start(command: list[str], out: Path, log: Path) -> int:
    """Forks a process that runs a command as any Python program does, and returns its number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [*command, str(out)]
    status = 1
    try:
        if command[0] == "fourdthinker":
            from fourdthinker_hf.cli import app

            app()
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int, seconds: float) -> tuple[bool, str | None]:
    """Kills a process after so many seconds. Returns whether it was at its end before, and what was not right."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)
    workers = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGKILL)
    was_finished = finish(child) == 0
    alive = psutil.wait_procs(workers, timeout=10)[1]
    return was_finished, f"{len(alive)} workers lived on" if alive else None


def content(out: Path) -> dict[str, str]:
    """A hash of each file beside and below `out`, by its place. Of logs, without times."""
    found = {}
    for path in sorted(out.parent.rglob("*")):
        if path.is_file() and path.name not in RUN_FILES:
            data = path.read_bytes()
            if path.name == "trainer_state.json":
                data = json.dumps(_without_times(json.loads(data))).encode()
            found[path.relative_to(out.parent).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def _without_times(value):
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if isinstance(value, dict):
        timed = ("time", "per_second", "train_loss")  # the last is the mean since the run went on
        return {name: _without_times(item) for name, item in value.items() if not any(word in name for word in timed)}
    return value


def trial(command: list[str], out: Path, log: Path, seconds: float, expected: dict[str, str]) -> str:
    """Kills a run and starts it again: "right", or what was wrong."""
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    was_finished, wrong = kill(start(command, out, log), seconds)
    if wrong:
        return wrong
    before = content(out)
    makes_folder = command[0] == "fourdthinker" and command[1] in ("convert", "merge")
    if makes_folder and out.exists():
        return FINISHED if before == expected else "the folder is there, but not as it should be"
    if status := finish(start(command, out, log)):
        return f"started again, it ended with status {status}"
    found = content(out)
    if names := [name for name in {**found, **expected} if found.get(name) != expected.get(name)]:
        return f"other files: {', '.join(names)}"
    if was_finished:
        return FINISHED
    return "right, something was there" if before else "right, nothing was there"


def import_for_runs() -> None:
    """Imports what the runs need, which are forked from this process."""
    import peft
    import torch  # noqa: F401
    import trl

    import fourdthinker_hf.cli
    import fourdthinker_hf.hub.convert
    import fourdthinker_hf.hub.merge  # noqa: F401

    peft.LoraConfig, trl.GRPOTrainer, trl.SFTTrainer  # noqa: B018  (imported when they are named)
    sys.path[:0] = [str(ROOT), str(ROOT / "train")]


def main(
    kills: Annotated[int, typer.Option(min=1, help="Number of kills of each command before its end.")] = 20,
    command: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(COMMANDS)}. Repeat the flag. All by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the moments.")] = 0,
) -> None:
    import_for_runs()
    folder, is_wrong = Path(tempfile.mkdtemp()), False
    inputs, out, log = folder / "inputs", folder / "place" / "out", folder / "log"
    inputs.mkdir()
    for name in command or COMMANDS:
        given, rng, counts = arguments(name, inputs), np.random.default_rng(seed), Counter()
        for _ in range(2):  # the first run fills caches, so the second one's time counts
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            began = time.monotonic()
            if status := finish(start(given, out, log)):
                sys.exit(f"{name} ended with status {status}:\n{log.read_text()}")
            duration, expected = time.monotonic() - began, content(out)
        print(f"{name}: {duration:.1f} s, {len(expected)} files", flush=True)
        while counts.total() - counts[FINISHED] < kills:
            seconds = duration * rng.uniform(COMMANDS[name], 1)
            counts[result := trial(given, out, log, seconds, expected)] += 1
            if result == FINISHED:
                duration *= 0.7  # the machine is faster than before
            print(f"{name} {counts.total()}, killed after {seconds:.1f} s: {result}", flush=True)
            if not result.startswith("right"):
                print(log.read_text()[-2000:])
                is_wrong = True
        print(f"{name}: {dict(counts)}", flush=True)
    shutil.rmtree(folder)
    sys.exit(is_wrong)


if __name__ == "__main__":
    typer.run(main)
