"""Measure the speed of `fourdthinker evaluate`, of its parts, and with other batch sizes, dtypes and processes.

    python bench/speed/evaluate.py                    # 60 simulated questions; four minutes on two CPU cores
    python bench/speed/evaluate.py --hd               # the same questions about 10 s of 1280 x 720, 30 frames a second
    python bench/speed/evaluate.py --benchmark data/heldout --model runs/mine

Each run is `evaluate` itself, in a process of its own. Opening the videos and answering take turns, so that their
times can be told apart. Only the run "prefetch" opens the next batch's videos while the model answers, as on a GPU.
Exits with 1 if batch size, number of processes or prefetching change a byte of the float32 predictions.
"""

import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def make_questions(folder: Path, num: int) -> Path:
    from fourdthinker_hf.data.simulation.generate_records import simulate

    return Path(simulate(num, 7, folder))


def make_hd(benchmark: Path, folder: Path, num_clips: int = 8) -> Path:
    """The same questions about clips as large as those of public benchmarks. They share `num_clips` clips."""
    import av
    import numpy as np
    from PIL import Image

    from fourdthinker_hf.video_fourdthinker import load_video

    rows = [json.loads(line) for line in benchmark.read_text().splitlines()]
    for number, row in enumerate(rows[:num_clips]):
        frames, _ = load_video(benchmark.parent / row["video"], num_frames=8)
        large = [np.asarray(Image.fromarray(frame).resize((1280, 720))) for frame in frames]
        with av.open(str(folder / f"{number}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
            for frame_number in range(300):
                shifted = np.roll(large[frame_number * len(large) // 300], frame_number, 1)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shifted), "rgb24")))
            out.mux(stream.encode(None))
    for number, row in enumerate(rows):
        row |= {"video": f"{number % num_clips}.mp4", "imagery": [], "reasoning": None}
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def timed(times: Counter, owner, name: str):
    """Add the seconds that a function takes to `times[name]`."""
    function = getattr(owner, name)

    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times[name] += time.perf_counter() - start

    setattr(owner, name, wrapper)
    yield
    setattr(owner, name, function)


def run(arguments: dict, prefetch: bool, queue) -> None:
    """Run `evaluate` and time its parts, which is exact only without `prefetch`."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

    from fourdthinker_hf.evaluation import prediction_files, runner

    prepare = runner._prefetch if prefetch else map
    runner._prepare_batches = lambda answerer, batches: prepare(answerer.prepare, batches)
    times = Counter()
    with (
        timed(times, runner, "open_clip"),
        timed(times, runner, "batch_inputs"),
        timed(times, Tower, "forward"),
        timed(times, runner, "answer_batch"),
        timed(times, runner, "load_model"),
        timed(times, runner, "judge"),
        timed(times, prediction_files.RunOutputs, "write"),
        timed(times, prediction_files.RunOutputs, "write_report"),
    ):
        report = runner.evaluate(**arguments)
    queue.put((report, times))


def evaluate(prefetch: bool = False, **arguments) -> tuple[dict, Counter]:
    """Run `evaluate` in a process of its own; returns its report and the seconds of its parts."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=run, args=(arguments, prefetch, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(1)
    return queue.get()


def print_speed(name: str, report: dict, times: Counter) -> None:
    pooled, call = report["table"]["pooled"], report["this_call"]
    seconds = call["seconds"] - times["load_model"]
    typer.echo(
        f"{name:<28} {call['asked'] / seconds:6.2f} questions/s, {seconds:6.2f} s and {times['load_model']:.2f} s to "
        f"load; {pooled['accuracy']:.1%} right, {len(report['near_ties'])} near ties"
    )


def print_parts(report: dict, times: Counter) -> None:
    seconds = report["this_call"]["seconds"] - times["load_model"]
    parts = {
        "opening videos": times["open_clip"],
        "prompts and pixels": times["batch_inputs"],
        "vision tower": times["forward"],
        "prefill and decoding": times["answer_batch"] - times["forward"],
        "judging": times["judge"],
        "writing": times["write"] + times["write_report"],
    }
    parts["the rest"] = seconds - sum(parts.values())
    typer.echo(
        "".join(f"  {name:<22} {part:6.2f} s  {part / seconds:6.1%}\n" for name, part in parts.items()), nl=False
    )


def launch(num_processes: int, arguments: dict) -> dict:
    program = "import json, sys; from fourdthinker_hf.evaluation import evaluate; evaluate(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_processes), "--master-port"]
    command += ["29511", "--no-python", sys.executable, "-c", program, json.dumps(arguments)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((Path(arguments["out"]) / "report.json").read_text())


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def main(
    benchmark: Annotated[Path | None, typer.Option(help="The benchmark. By default questions are simulated.")] = None,
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = ROOT / "checkpoints/4dthinker-tiny",
    num: Annotated[int, typer.Option(min=1, help="Number of questions to simulate.")] = 60,
    hd: Annotated[bool, typer.Option(help="Ask the questions about large clips.")] = False,
) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    typer.echo(f"commit {commit}, {os.cpu_count()} CPU cores, OMP_NUM_THREADS {threads}, {versions}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        benchmark = benchmark or make_questions(scratch / "questions", num)
        if hd:
            (scratch / "hd").mkdir()
            benchmark = make_hd(benchmark, scratch / "hd")
        raise SystemExit(not compare_runs(scratch, str(model), str(benchmark)))


def compare_runs(scratch: Path, model: str, benchmark: str) -> bool:
    from fourdthinker_hf.evaluation.statistics import compare

    def settings(name: str, **values) -> dict:
        return {"model": model, "benchmark": benchmark, "out": str(scratch / name), **values}

    for size in (1, 8, 32):
        report, times = evaluate(**settings(f"batch{size}", batch_size=size))
        print_speed(f"fp32, batch {size}", report, times)
        print_parts(report, times)
    print_speed("fp32, batch 8, prefetch", *evaluate(prefetch=True, **settings("prefetch", batch_size=8)))
    speed = launch(2, settings("two", batch_size=8))["this_call"]["questions_per_second"]
    typer.echo(f"{'fp32, batch 8, 2 processes':<28} {speed:6.2f} questions/s, loading included")
    print_speed("bf16, batch 32", *evaluate(**settings("bf16", batch_size=32, dtype="bfloat16")))
    files = {
        name: (scratch / name / "predictions.jsonl").read_bytes() for name in ("batch1", "batch8", "prefetch", "two")
    }
    first = (scratch / "batch32" / "predictions.jsonl").read_bytes()
    same = {name: text == first for name, text in files.items()}
    typer.echo(f"the same bytes as fp32, batch 32: {same}")
    full, half = rows_of(scratch / "batch32"), rows_of(scratch / "bf16")
    found = compare(full, half)
    replies = sum(a["response"] != b["response"] for a, b in zip(full, half, strict=True))
    typer.echo(
        f"bf16 changes {replies} replies and {found['changed'] * found['num']:.0f} answers of {found['num']}; "
        f"accuracy by {found['difference']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})"
    )
    return all(same.values())


if __name__ == "__main__":
    typer.run(main)
