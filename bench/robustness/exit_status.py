"""Counts the runs of two processes that end by a signal or with another status than 0, although their work was done.

    python bench/robustness/exit_status.py --runs 50
    python bench/robustness/exit_status.py --runs 50 --kind sft --kind evaluate

Gloo's threads may outlive the interpreter, which then ends by SIGABRT (pytorch#190489). Each run is two processes that
are forked from this one after it has imported PyTorch, transformers and TRL, but not DeepSpeed, so that a run takes
seconds. They end as any Python program does. A run is right if both processes end with status 0 and its files are
there.
"""

import json
import os
import runpy
import shutil
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train")]
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", MASTER_ADDR="127.0.0.1")

import numpy as np  # noqa: E402
import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401
import trl  # noqa: E402
import typer  # noqa: E402
from PIL import Image  # noqa: E402

from fourdthinker_hf.data.media import write_video  # noqa: E402
from fourdthinker_hf.evaluation import runner  # noqa: E402, F401

trl.GRPOTrainer, trl.SFTTrainer  # noqa: B018  (imported when they are named)
MODEL = ROOT / "checkpoints/4dthinker-tiny"
KINDS = ("sft", "grpo", "evaluate")
TRAINING = (
    "--max_steps 1 --per_device_train_batch_size 2 --save_strategy no --use_cpu true --bf16 false --report_to none"
)


def arguments(kind: str, records: Path, out: Path) -> list[str]:
    """The command line of one run: program, then arguments."""
    if kind == "evaluate":
        given = f"evaluate --model {MODEL} --benchmark {records} --out {out} --batch-size 1 --max-new-tokens 2"
        return ["fourdthinker", *given.split()]
    given = f"--model_name_or_path {MODEL} --records {records} --output_dir {out} --gradient_checkpointing false"
    extra = "--num_generations 2 --max_completion_length 4" if kind == "grpo" else ""
    return [str(ROOT / f"train/{kind}.py"), *given.split(), *TRAINING.split(), *extra.split()]


def is_written(kind: str, out: Path) -> bool:
    """Whether the run left all its files."""
    if kind == "evaluate":
        return (out / "predictions.jsonl").read_text().count("\n") == 4 and (out / "report.md").is_file()
    return (out / "model.safetensors").is_file() and (out / "trainer_state.json").is_file()


def start(kind: str, records: Path, out: Path, rank: int, port: int) -> int:
    """Forks one process of a run, and returns its number in the parent. The child runs the program and leaves this
    function by `SystemExit`."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    log = os.open(out.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_PORT=str(port)
    )
    sys.argv = arguments(kind, records, out)
    if kind == "evaluate":
        from fourdthinker_hf.cli import app

        app()
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
    raise SystemExit


def run(kind: str, records: Path, out: Path) -> str:
    """Runs two processes to their end: "right", or what was wrong."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [start(kind, records, out, rank, port) for rank in range(2)]
    ends = sorted({os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children})
    if ends != [0]:
        return f"status {', '.join(map(str, ends))}"
    return "right" if is_written(kind, out) else "files are missing"


def main(
    runs: Annotated[int, typer.Option(min=1, help="Number of runs of each kind.")] = 50,
    kind: Annotated[
        list[str] | None, typer.Option(help="sft, grpo or evaluate. Repeat the flag. All by default.")
    ] = None,
) -> None:
    assert "deepspeed" not in sys.modules
    folder = Path(tempfile.mkdtemp())
    write_video(folder / "clip.mp4", np.zeros((8, 112, 112, 3), np.uint8), 4)
    Image.new("RGB", (112, 112)).save(folder / "target.png")
    row = {"question": "which way", "options": ["left", "right"], "answer": "left", "video": "clip.mp4"}
    row |= {"reasoning": "it <output_image> moves", "imagery": ["target.png"]}
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i in range(4)))
    for name in kind or KINDS:
        counts = Counter()
        for number in range(runs):
            out = folder / f"{name}_{number}"
            counts[result := run(name, records, out)] += 1
            print(f"{name} {number + 1}/{runs}: {result}", flush=True)
            if result == "right":
                shutil.rmtree(out)
            else:
                print(*(path.read_text()[-2000:] for path in folder.glob(f"{name}_{number}.*.log")), sep="\n")
        print(f"{name}: {dict(counts)}", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
