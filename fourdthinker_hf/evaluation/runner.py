"""Asks a model every question of a benchmark: greedily, in batches, in one or several processes.

    fourdthinker evaluate --benchmark data/heldout --out outputs/heldout
    accelerate launch --multi_gpu --num_processes 2 --no_python fourdthinker evaluate --benchmark ... --out ...

The second line, `--multi_gpu` included, also works on CPUs.

A batch holds the same questions in every run, however often the run was killed and however many processes share the
work: process k of n answers the batches k, k + n, k + 2n and so on. So the same settings write the same bytes of
`predictions.jsonl`. Another batch size changes the padding, and with it the last bits of sums. That can change an
answer only where the two best scores of a token are closer than those bits; the report lists such answers. The numbers
in a row are rounded so far that the last bits hardly ever show.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import BatchFeature

from ..answers import judge, match_option, parse
from ..batch_inference import Clip, Reply, answer_batch, batch_inputs, likeliest_option, open_clip
from ..checkpoints import find_model, load_model, model_hash
from ..data.records import Record, RecordError, clip_hash
from ..distributed import DistributedState
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..output_files import versions
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor
from .benchmarks import load_benchmark, missing_files, questions_hash
from .prediction_files import RunOutputs, commit
from .probes import PROBES, Images, Probe
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
    revision: str | None = None,
    subfolder: str | None = None,
    device: str | None = None,
) -> dict | None:
    """Evaluate a checkpoint on a benchmark.

    Writes `out/predictions.jsonl`, one line for each question in the benchmark's order, as batches finish. Then writes
    `out/report.json`, which the main process returns, and `out/report.md`.

    Args:
        model: folder or Hub id of the checkpoint.
        benchmark: what [`load_benchmark`] reads.
        out: a folder. If it holds a part of the same run, the run is resumed; if it holds another run, it is refused.
        probe: one of `PROBES`.
        dtype: one of `DTYPES`.
        missing: with "count" a question that cannot be asked (a broken line, a wrong number of options) is left out
            and named in the report's `left_out`, and a question whose video is missing or cannot be read counts as
            wrong and is listed; the next call asks it again if the file is there. With "refuse" the first two end the
            run before anything is loaded, and an unreadable file ends it when it is met.
        max_new_tokens: the limit of a reply.
        revision, subfolder: of the model, as in [`find_model`].
        device: where one process runs; by default a GPU if there is one. Several processes choose theirs.

    Raises `ValueError` for an argument that cannot be used.
    """
    for name, value, known in (("probe", probe, PROBES), ("dtype", dtype, DTYPES), ("missing", missing, MISSING)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    start = time.perf_counter()
    left_out, places = [], {}
    records = load_benchmark(benchmark, None if missing == "refuse" else left_out, places)
    if missing == "refuse":
        _refuse_missing(records)
    distributed = DistributedState(device)
    folder = find_model(model, revision, subfolder)
    settings = {
        "model": str(model),
        "revision": revision,
        "subfolder": subfolder,
        "model_sha256": model_hash(folder),
        "benchmark": str(benchmark),
        "questions_sha256": questions_hash(records),
        "num_questions": len(records),
        "probe": probe,
        "fallback": "likeliest option",  # a run without it has rows of another form
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "device": distributed.device.type,
        "batch_size": batch_size if dtype == "bfloat16" else "any",
        **versions("torch", "transformers"),
    }
    outputs = RunOutputs(Path(out), distributed, records, settings)
    with outputs.open(ask_again={record.id for record in records if not missing_files(record)}):
        batches = [range(first, min(first + batch_size, len(records))) for first in range(0, len(records), batch_size)]
        pending = [
            batch
            for batch in batches[distributed.rank :: distributed.world_size]
            if not all(records[i].id in outputs.rows for i in batch)
        ]
        if pending:
            network, processor = load_model(folder, distributed.device, dtype)
            answerer = _BatchAnswerer(
                network, processor, records, places, PROBES[probe], missing == "refuse", max_new_tokens
            )
            _answer_batches(answerer, pending, outputs)
        distributed.wait_for_everyone()
        num_asked, seconds = len(records) - len(outputs.rows), time.perf_counter() - start
        return outputs.write_report(
            left_out,
            {
                "asked": num_asked,
                "seconds": round(seconds, 2),
                "questions_per_second": round(num_asked / seconds, 3),
                "batch_size": batch_size,
                "num_processes": distributed.world_size,
                "commit": commit(),
            },
        )


# Rows of predictions.jsonl


def prediction_row(record: Record, reply: Reply, likeliest: int | None = None) -> dict:
    """The row of a question that was answered. `prediction` and `correct` judge the words alone, `choice` and
    `choice_correct` take the option with the index `likeliest` where the words name none."""
    verdict = judge(reply.text, record.answer, record.options, likeliest)
    vectors = torch.cat(reply.images).float() if reply.images else None
    return {
        **_question_fields(record),
        "prediction": None if verdict.option is None else record.options[verdict.option],
        "correct": verdict.is_right,
        "choice": None if verdict.choice.option is None else record.options[verdict.choice.option],
        "chosen_by": verdict.choice.chosen_by,
        "choice_correct": verdict.is_choice_right,
        "response": reply.text,
        "reason": verdict.reason,
        "num_images": reply.text.count(OUTPUT_IMAGE),
        "well_formed": verdict.parsed.well_formed,
        "truncated": reply.truncated,
        "num_tokens": reply.num_tokens,
        "num_latents": 0 if vectors is None else len(vectors),
        "latent_norm": None if vectors is None else float(f"{float(vectors.norm(dim=-1).mean()):.1e}"),
        "margin": _round_margin(reply.margin),
    }


def unreadable_row(record: Record, reason: str) -> dict:
    """The row of a question whose video could not be read."""
    return {
        **_question_fields(record),
        "prediction": None,
        "correct": False,
        "choice": None,
        "chosen_by": None,
        "choice_correct": False,
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


def _question_fields(record: Record) -> dict:
    task = record.task or "questions"
    return {
        "id": record.id,
        "task": task,
        "expected": record.answer,
        "num_options": len(record.options),
        "clip_sha256": clip_hash(record),
    }


def _round_margin(margin: float) -> float | None:
    """The margin rounded down to a power of ten, and to 0 for a near tie, so that the last bits of sums do not show.
    None if every token of the reply was forced."""
    if math.isnan(margin):
        raise ValueError("The model's scores are not numbers (NaN): try --dtype float32, or another checkpoint")
    if math.isinf(margin):
        return None
    return 0.0 if margin < NEAR_TIE else float(f"1e{math.floor(math.log10(margin))}")


# Batches. A question is known by its index in the benchmark.


@dataclass
class _Prompts:
    """The prompts of some questions: `indices` of those whose video could be read, the model's `inputs` for them (None
    if there are none), and for the other questions the `reasons` why it could not be read."""

    indices: list[int]
    inputs: BatchFeature | None
    reasons: dict[int, str]


@dataclass
class _BatchAnswerer:
    """Prepares and answers batches of `records` with one model and one probe."""

    network: FourDThinkerForConditionalGeneration
    processor: FourDThinkerProcessor
    records: list[Record]
    places: dict[str, str]  # file and line of each record, by its id
    probe: Probe
    refuse_unreadable: bool
    max_new_tokens: int

    def prepare(self, indices: range) -> tuple[range, _Prompts, _Prompts | None]:
        """What needs no model: the prompts of these questions, and if the probe needs the next questions' mental
        images, the plain prompts of the next questions."""
        clips = {}  # by video: several questions may be about one, and a batch opens it once
        prompts, next_prompts = self._make_prompts(indices, self.probe, clips), None
        if self.probe.needs_next_images:
            following = [self._next(i) for i in prompts.indices]
            next_prompts = self._make_prompts(following, PROBES["plain"], clips)
        return indices, prompts, next_prompts

    def answer(self, prompts: _Prompts, next_prompts: _Prompts | None) -> dict[int, dict]:
        """The rows of the questions that were answered, by their indices."""
        next_images = None
        if next_prompts is not None:
            next_replies = self._generate(next_prompts, PROBES["plain"], None)
            following = [self._next(i) for i in prompts.indices]
            next_images = [next_replies[i].images if i in next_replies else [] for i in following]
        replies = self._generate(prompts, self.probe, next_images)
        likeliest = [self._likeliest_option(prompts, row, replies[i]) for row, i in enumerate(prompts.indices)]
        return {
            i: prediction_row(self.records[i], replies[i], option)
            for i, option in zip(prompts.indices, likeliest, strict=True)
        }

    def _likeliest_option(self, prompts: _Prompts, row: int, reply: Reply) -> int | None:
        """None where the words name an option, or there is none."""
        options = self.records[prompts.indices[row]].options
        if not options or match_option(parse(reply.text).answer, options)[0] is not None:
            return None
        inputs, sees = prompts.inputs.to(self.network.device), self.probe.latents_see_video
        return likeliest_option(self.network, self.processor, inputs, row, reply, options, sees)

    def _next(self, index: int) -> int:
        return (index + 1) % len(self.records)

    def _make_prompts(self, indices, probe: Probe, opened: dict) -> _Prompts:
        clips: dict[int, Clip] = {}
        reasons = {}
        for i in indices:
            record = self.records[i]
            video = record.video or (*record.frames, *(record.timestamps or ()))
            try:
                clips[i] = opened[video] = opened.get(video) or open_clip(self.processor, record)
            except (ValueError, OSError) as error:
                reasons[i] = f"{self.places[record.id]}: the video could not be read: {error}"
                if self.refuse_unreadable:
                    raise RecordError(reasons[i]) from error
        records = [self.records[i] for i in clips]
        inputs = batch_inputs(self.processor, records, list(clips.values()), probe.change_video) if clips else None
        return _Prompts(list(clips), inputs, reasons)

    def _generate(self, prompts: _Prompts, probe: Probe, next_images: Images | None) -> dict[int, Reply]:
        if prompts.inputs is None:
            return {}
        inputs = prompts.inputs.to(self.network.device)
        kwargs = probe.generate_kwargs(self.network, [self.records[i] for i in prompts.indices], next_images)
        replies = answer_batch(self.network, self.processor, inputs, self.max_new_tokens, **kwargs)
        return dict(zip(prompts.indices, replies, strict=True))


def _answer_batches(answerer: _BatchAnswerer, batches: list[range], outputs: RunOutputs) -> None:
    records = answerer.records
    is_silent = not outputs.distributed.is_main_process
    with tqdm(total=sum(map(len, batches)), unit="question", disable=is_silent) as progress:
        for indices, prompts, next_prompts in _prepare_batches(answerer, batches):
            rows, reasons = answerer.answer(prompts, next_prompts), prompts.reasons
            outputs.write([rows[i] if i in rows else unreadable_row(records[i], reasons[i]) for i in indices])
            progress.update(len(indices))
            progress.set_postfix_str(f"accuracy {outputs.accuracy:.1%}")


def _prepare_batches(answerer: _BatchAnswerer, batches: list[range]) -> Iterator:
    """On a GPU the next batch is prepared while the model answers. On the CPU both need the same cores, so they take
    turns, which is faster (measured by bench/speed/evaluate.py)."""
    return (map if answerer.network.device.type == "cpu" else _prefetch)(answerer.prepare, batches)


def _prefetch(function, items: list) -> Iterator:
    """`map(function, items)`, which always computes the next item in another thread."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, items[0])
        for item in [*items[1:], None]:
            current, future = future, None if item is None else pool.submit(function, item)
            yield current.result()


def _refuse_missing(records: list[Record]) -> None:
    missing = sorted({path for record in records for path in missing_files(record)})
    if missing:
        raise ValueError(
            f"{len(missing)} files of the benchmark are missing (--missing count counts their questions as wrong): "
            + ", ".join(missing)
        )
