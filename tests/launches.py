"""Runs `accelerate launch` on the CPU, for tests of the launchers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(program: str | Path, *arguments: object, launch: tuple = ()) -> subprocess.Popen:
    """Starts `accelerate launch LAUNCH PROGRAM ARGUMENTS` on the CPU."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "train", ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, program, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*runs: subprocess.Popen) -> str:
    """Waits for all runs, which must succeed. Returns what the first one printed."""
    outputs = [run.communicate()[0] for run in runs]
    for run in runs:
        assert run.returncode == 0, "\n\n".join(outputs)[-20000:]
    return outputs[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed(name: str) -> tuple:
    """Options of `accelerate launch` for two processes with the hardware file `name`."""
    return (
        "--config_file",
        ROOT / f"train/accelerate/{name}.yaml",
        "--mixed_precision",
        "no",
        "--num_processes",
        2,
        "--main_process_port",
        free_port(),
    )


def log_history(folder: Path) -> list[dict]:
    """The logs of a finished run in `folder`."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]
