"""Ask a model every question of a benchmark: greedily, in batches, in one or several processes.

A batch is the same questions in every run, whatever was done before a kill and however many processes share the work:
batch k is asked by process k modulo their number. So the same settings give the same bytes of `predictions.jsonl`.
With another batch size padding changes the last bits of sums, and an answer only where two scores lie closer than
that: such answers are listed. The numbers in a row are rounded so far that those bits hardly ever show.

    fourdthinker evaluate --benchmark data/heldout --out outputs/heldout
    accelerate launch --multi_gpu --num_processes 2 --no_python fourdthinker evaluate --benchmark ... --out ...

The same line, `--multi_gpu` included, runs on CPUs.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..answers import judge
from ..data.records import Record
from ..hub.files import find_model, load_model, model_hash
from ..inference import Clip, Reply, answer_batch, batch_inputs, open_clip
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor
from .benchmarks import load_benchmark, missing_files, questions_hash
from .outputs import Outputs, Processes, commit, versions
from .probes import PROBES, Probe
from .report import NEAR_TIE

DTYPES = ("float32", "bfloat16")
MISSING = ("count", "refuse")


def evaluate(
    model: str,
    benchmark: str,
    out: str,
    batch_size: int = 32,
    probe: str = "plain",
    dtype: str = "float32",
    missing: str = "count",
    max_new_tokens: int = 256,
) -> dict | None:
    """Evaluate the checkpoint `model` (folder or Hub id) on what [`load_benchmark`] finds at `benchmark`.

    Writes `out/predictions.jsonl`, a line a question in the benchmark's order, as batches finish; then `report.json`,
    which is returned (in the main process), and `report.md`. An `out` that holds a part of the same run is resumed;
    of another run, refused. `probe`: one of `PROBES`. A question whose video is missing or cannot be read counts as
    wrong and is listed (and is asked again by the next call if the file is there); with `missing="refuse"` a missing
    file ends the run before anything is loaded, an unreadable one when it is met. `ValueError` for what cannot be run.
    """
    for name, value, known in (("probe", probe, PROBES), ("dtype", dtype, DTYPES), ("missing", missing, MISSING)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    start = time.perf_counter()
    records = load_benchmark(benchmark)
    if missing == "refuse":
        _refuse_missing(records)
    processes = Processes()
    folder = find_model(model)
    settings = {
        "model": str(model),
        "model_sha256": model_hash(folder),
        "benchmark": str(benchmark),
        "questions_sha256": questions_hash(records),
        "num_questions": len(records),
        "probe": probe,
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "device": processes.device.type,
        "batch_size": batch_size if dtype == "bfloat16" else "any",
        **versions(),
    }
    outputs = Outputs(Path(out), processes, [record.id for record in records])
    outputs.begin(settings, again={record.id for record in records if not missing_files(record)})
    batches = [range(first, min(first + batch_size, len(records))) for first in range(0, len(records), batch_size)]
    todo = [
        batch
        for batch in batches[processes.index :: processes.count]
        if not all(records[i].id in outputs.rows for i in batch)
    ]
    if todo:
        network, processor = load_model(folder, processes.device, dtype)
        asked = _Asked(network, processor, records, PROBES[probe], missing == "refuse", max_new_tokens)
        _ask(asked, todo, outputs)
    processes.wait()
    num_asked, seconds = len(records) - len(outputs.rows), time.perf_counter() - start
    return outputs.finish(
        {
            "asked": num_asked,
            "seconds": round(seconds, 2),
            "questions_per_second": round(num_asked / seconds, 3),
            "batch_size": batch_size,
            "num_processes": processes.count,
            "commit": commit(),
        }
    )


def prediction_row(record: Record, reply: Reply) -> dict:
    """One line of `predictions.jsonl`."""
    verdict = judge(reply.text, record.answer, record.options)
    vectors = torch.cat(reply.images).float() if reply.images else None
    return {
        **_row(record),
        "prediction": None if verdict.option is None else record.options[verdict.option],
        "correct": verdict.is_right,
        "response": reply.text,
        "reason": verdict.reason,
        "num_images": reply.text.count(OUTPUT_IMAGE),
        "well_formed": verdict.parsed.well_formed,
        "truncated": reply.truncated,
        "num_tokens": reply.num_tokens,
        "num_latents": 0 if vectors is None else len(vectors),
        "latent_norm": None if vectors is None else float(f"{float(vectors.norm(dim=-1).mean()):.1e}"),
        "margin": _coarse(reply.margin),
    }


def unreadable_row(record: Record, reason: str) -> dict:
    """The line of a question whose video could not be read."""
    return {
        **_row(record),
        "prediction": None,
        "correct": False,
        "response": None,
        "reason": reason,
        "num_images": 0,
        "well_formed": False,
        "truncated": False,
        "num_tokens": 0,
        "num_latents": 0,
        "latent_norm": None,
        "margin": None,
    }


def _row(record: Record) -> dict:
    task = record.task or "questions"
    return {"id": record.id, "task": task, "expected": record.answer, "num_options": len(record.options)}


def _coarse(margin: float) -> float | None:
    """Rounded down to a power of ten, and to 0 where it is a near tie: the last bits of sums do not show."""
    if math.isnan(margin):
        raise ValueError("The model's scores are not numbers (NaN): try --dtype float32, or another checkpoint")
    if math.isinf(margin):
        return None
    return 0.0 if margin < NEAR_TIE else float(f"1e{math.floor(math.log10(margin))}")


@dataclass
class _Asked:
    """A loaded model and what it is asked."""

    network: FourDThinkerForConditionalGeneration
    processor: FourDThinkerProcessor
    records: list[Record]
    probe: Probe
    refuse: bool
    max_new_tokens: int

    def open(self, numbers, opened: dict) -> tuple[dict[int, Clip], dict[int, str]]:
        """The clips of the questions `numbers`, and why others could not be read. Those in `opened` are not opened
        again: benchmarks ask several questions about a video."""
        clips, reasons = {}, {}
        for i in numbers:
            record = self.records[i]
            video = record.video or (*record.frames, *(record.timestamps or ()))
            try:
                clips[i] = opened[video] = opened.get(video) or open_clip(self.processor, record)
            except (ValueError, OSError) as error:
                if self.refuse:
                    raise
                reasons[i] = f"the video could not be read: {error}"
        return clips, reasons

    def prepare(self, batch: range):
        """All of a batch that needs no model: its prompts, why some could not be made, and its donors' prompts."""
        opened = {}
        clips, reasons = self.open(batch, opened)
        donors = self.donors(clips, opened) if self.probe.needs_donors else None
        return batch, list(clips), self.inputs(clips, self.probe), reasons, donors

    def inputs(self, clips: dict[int, Clip], probe: Probe):
        records = [self.records[i] for i in clips]
        return batch_inputs(self.processor, records, list(clips.values()), probe.video) if clips else None

    def donors(self, numbers, opened: dict):
        """Plain prompts of the benchmark's next question for each of `numbers`."""
        following = [(i + 1) % len(self.records) for i in numbers]
        clips, _ = self.open(following, opened)
        return following, list(clips), self.inputs(clips, PROBES["plain"])

    def answer(self, numbers, inputs, donors) -> list[Reply]:
        if inputs is None:
            return []
        inputs = inputs.to(self.network.device)
        records = [self.records[i] for i in numbers]
        images = None if donors is None else self.images(*donors)
        kwargs = self.probe.generation(self.network, self.processor, inputs, records, images)
        return answer_batch(self.network, self.processor, inputs, self.max_new_tokens, **kwargs)

    def images(self, following, numbers, inputs) -> list[list[torch.Tensor]]:
        """The donors' mental images, none for one whose video could not be read."""
        replies = []
        if inputs is not None:
            inputs = inputs.to(self.network.device)
            replies = answer_batch(self.network, self.processor, inputs, self.max_new_tokens)
        found = {i: reply.images for i, reply in zip(numbers, replies, strict=True)}
        return [found.get(i, []) for i in following]


def _ask(asked: _Asked, batches: list[range], outputs: Outputs) -> None:
    bar = tqdm(total=sum(map(len, batches)), unit="question", disable=not outputs.processes.is_main)
    with bar:
        for batch, numbers, inputs, reasons, donors in _prepared(asked, batches):
            replies = dict(zip(numbers, asked.answer(numbers, inputs, donors), strict=True))
            outputs.write(
                [
                    prediction_row(asked.records[i], replies[i])
                    if i in replies
                    else unreadable_row(asked.records[i], reasons[i])
                    for i in batch
                ]
            )
            bar.update(len(batch))
            bar.set_postfix_str(f"accuracy {outputs.accuracy:.1%}")


def _prepared(asked: _Asked, batches: list[range]) -> Iterator:
    """Batches ready to be answered. On the CPU, where opening videos and answering want the same cores, in turn
    (measured: bench/speed/evaluate.py)."""
    return (map if asked.network.device.type == "cpu" else _one_ahead)(asked.prepare, batches)


def _one_ahead(function, items: list) -> Iterator:
    """`map(function, items)`, the next one always under way in another thread."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(function, items[0])
        for item in [*items[1:], None]:
            done, ahead = ahead, None if item is None else pool.submit(function, item)
            yield done.result()


def _refuse_missing(records: list[Record]) -> None:
    absent = sorted({path for record in records for path in missing_files(record)})
    if absent:
        raise ValueError(
            f"{len(absent)} files of the benchmark are missing (--missing count goes on without them): "
            + ", ".join(absent)
        )
