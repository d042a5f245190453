"""Several machines share the work of evaluate, filter and annotate, and write what one process writes. A lost process
is named, and the run continues. The machines are two launches on this one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from launches import ROOT, finish, free_port, start

from fourdthinker_hf.data.annotation.pipeline import annotate
from fourdthinker_hf.evaluation import runner
from fourdthinker_hf.training.filter_records import filter_records

NUM_QUESTIONS = 6


@pytest.fixture
def inputs(tmp_path, clip) -> Path:
    """A folder with six questions and two videos."""
    (tmp_path / "videos").mkdir()
    for name in ("camera", "direction"):
        shutil.copy(ROOT / f"examples/sim_{name}.mp4", tmp_path / "videos")
    row = {"video": str(clip), "options": ["left", "right"], "answer": "right"}
    lines = [json.dumps({"id": str(i), "question": "which" + " now" * i, **row}) for i in range(NUM_QUESTIONS)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def run_evaluate(inputs: Path, model: str, out: Path) -> None:
    runner.evaluate(model, str(inputs / "records.jsonl"), str(out / "evaluated"), batch_size=1, max_new_tokens=4)


def work(inputs: Path, model: str, out: Path) -> None:
    """What each process does: a share of all three commands."""
    run_evaluate(inputs, model, out)
    filter_records(inputs / "records.jsonl", out / "kept.jsonl", model, samples=2, batch_size=1, max_new_tokens=4)
    annotate(inputs / "videos", out / "annotated", workers=1, progress=False)


def work_until_killed(inputs: Path, model: str, out: Path) -> None:
    """As [`run_evaluate`], but the second process is killed after its first batch."""
    write = runner.RunOutputs.write

    def write_once(self, rows):
        write(self, rows)
        if self.distributed.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    runner.RunOutputs.write = write_once
    run_evaluate(inputs, model, out)


def start_machines(kind, *arguments) -> list[subprocess.Popen]:
    """`kind` of this file, in one process on each of two machines."""
    port = free_port()
    shared = ("--multi_gpu", "--num_machines", 2, "--num_processes", 2, "--main_process_ip", "127.0.0.1")
    return [
        start(
            Path(__file__),
            kind.__name__,
            *arguments,
            launch=(*shared, "--main_process_port", port, "--machine_rank", rank),
        )
        for rank in range(2)
    ]


def written(out: Path) -> dict[str, bytes]:
    """The files that must be equal, by name. The report of annotate has times."""
    names = ("evaluated/predictions.jsonl", "kept.jsonl", "kept.counts.jsonl", "annotated/records.jsonl")
    return {name: (out / name).read_bytes() for name in names}


@pytest.mark.slow
def test_two_machines_write_the_bytes_of_one_process(inputs, tiny_folder, tmp_path):
    work(inputs, str(tiny_folder), tmp_path / "one")
    finish(*start_machines(work, inputs, tiny_folder, tmp_path / "two"))
    assert written(tmp_path / "one") == written(tmp_path / "two")
    files = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "two")]
    assert files[0] == files[1]  # no part is left
    report = json.loads((tmp_path / "two/evaluated/report.json").read_text())
    assert report["this_call"]["num_processes"] == 2 and report["this_call"]["asked"] == NUM_QUESTIONS
    summary = json.loads((tmp_path / "two/annotated/report-1-of-1.json").read_text())
    assert summary["videos"] == 2 and summary["failed"] == []


@pytest.mark.slow
def test_a_lost_process_is_named_and_the_run_continues(inputs, tiny_folder, tmp_path):
    machines = start_machines(work_until_killed, inputs, tiny_folder, tmp_path / "out")
    first, second = (machine.communicate(timeout=300)[0] for machine in machines)
    assert all(machine.returncode != 0 for machine in machines)
    assert "Signal 9 (SIGKILL) received" in second
    assert re.search("OSError: process 0 of 2 waited for one that is lost. .* the same command continues", first)
    run_evaluate(inputs, str(tiny_folder), tmp_path / "out")
    report = json.loads((tmp_path / "out/evaluated/report.json").read_text())
    assert report["this_call"]["asked"] == NUM_QUESTIONS - 4  # three were asked by process 0, one by process 1
    run_evaluate(inputs, str(tiny_folder), tmp_path / "whole")
    one, other = (tmp_path / name / "evaluated/predictions.jsonl" for name in ("out", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_an_import_of_deepspeed_does_not_keep_the_process_group():
    """Gloo's threads end with the last reference to the group. If DeepSpeed is imported while there is a group, the
    default arguments of its functions are such references, and the process may end by SIGABRT (pytorch#190489)."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import test_distributed
test_distributed.check_references({free_port()})
"""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "only the group" in done.stdout, done.stderr[-3000:]


def check_references(port: int) -> None:
    """After what a launcher imports, no function's default arguments hold the group."""
    import gc

    import torch.distributed as dist

    from fourdthinker_hf.training import run  # noqa: F401

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    import deepspeed
    import torch.distributed.nn.functional

    group = dist.group.WORLD
    functions = [thing for thing in gc.get_objects() if type(thing) is types.FunctionType and thing.__defaults__]
    holders = [function for function in functions if any(value is group for value in function.__defaults__)]
    assert holders == [], holders
    assert deepspeed.comm and torch.distributed.nn.functional
    dist.destroy_process_group()
    print("only the group")


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    globals()[kind](Path(paths[0]), paths[1], Path(paths[2]))
