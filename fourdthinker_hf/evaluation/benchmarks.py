"""Reads benchmarks from their own files.

A loader is a function `load(path) -> list[Record] | None`. It returns the questions of the benchmark at `path`, or
None if `path` is not in its format. If the format is right but the file cannot be read, it raises a `ValueError` that
names file, place and reason. To add a benchmark, write a file like `dsr_bench.py` and add its `load` to `LOADERS`.
Loaders do not check that videos exist; the runner does.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ..data.question_vocabulary import DSR_TASKS
from ..data.records import Record, read_records
from ..processing_fourdthinker import OUTPUT_IMAGE
from . import dsr_bench


def load_benchmark(path: str | os.PathLike) -> list[Record]:
    """The questions at `path`. Raises `ValueError` unless each has options, one of them the answer, and its own id."""
    path = Path(path).absolute()
    if not path.exists():
        raise ValueError(f"{path}: there is neither a file nor a folder of this name")
    for load in LOADERS:
        if (records := load(path)) is not None:
            _check(path, records)
            return records
    raise ValueError(
        f"{path} is no benchmark: neither a JSONL file of records, nor a folder with records.jsonl, nor a folder with "
        f"{dsr_bench.FILE}"
    )


def load_jsonl(path: Path) -> list[Record] | None:
    """The records of a JSONL file, or of `records.jsonl` in a folder, in any schema that [`read_records`] reads. Their
    reasoning and imagery are dropped, since answering does not need them."""
    path = path / "records.jsonl" if path.is_dir() else path
    if path.suffix not in (".jsonl", ".json") or not path.exists():
        return None
    return [replace(record, reasoning=None, imagery=[]) for record in read_records(path, check=None)]


LOADERS = (dsr_bench.load, load_jsonl)


def missing_files(record: Record) -> list[str]:
    """Those of the record's video or frames that do not exist."""
    return [path for path in (record.frames or [record.video]) if not os.path.isfile(path)]


def questions_hash(records: list[Record]) -> str:
    """SHA-256 of ids, questions, options, answers, tasks and file names of videos. Their folders do not change it."""
    rows = [
        [
            *(record.id, record.question, record.options, record.answer, record.task),
            *(os.path.basename(name) for name in record.frames or [record.video]),
        ]
        for record in records
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def benchmark_name(records: list[Record], path: Path) -> tuple[str, bool]:
    """What a report calls the benchmark, and whether the simulator made all its records."""
    if all((record.source or {}).get("generator") == "simulation" for record in records):
        return simulated_name(records), True
    return (path.parent.name if path.name == "records.jsonl" else path.stem), False


def simulated_name(records: list[Record]) -> str:
    """The name of simulated questions, such as "DSR-Sim, level 2, seed 7"."""
    facts = simulated_facts(records)
    family = "DSR-Sim" if facts["tasks"].keys() <= set(DSR_TASKS) else "Simulated questions"
    parts = [f"{key} {', '.join(map(str, facts[key]))}" for key in ("level", "seed")]
    return ", ".join([family, *parts, *(f"split {split}" for split in facts["split"] if split != "train")])


def simulated_facts(records: list[Record]) -> dict:
    """The levels, seeds and splits of simulated questions, each a sorted list, and the number of questions by task."""
    sources = [record.source for record in records]
    return {
        **{key: sorted({source[key] for source in sources}) for key in ("level", "seed")},
        "split": sorted({source.get("split", "train") for source in sources}),
        "tasks": dict(sorted(Counter(record.task for record in records).items())),
    }


def _check(path: Path, records: list[Record]) -> None:
    if not records:
        raise ValueError(f"{path} holds no questions")
    seen = set()
    for record in records:
        if reason := "another question has the same id" if record.id in seen else _why_unusable(record):
            raise ValueError(f"{path}: question {record.id!r} cannot be asked: {reason}")
        seen.add(record.id)


def _why_unusable(record: Record) -> str | None:
    if not record.options or len(record.options) < 2:
        return "it has no options to choose from, and an open answer cannot be judged"
    if record.answer not in record.options:
        return f"the answer {record.answer!r} is not among the options {record.options}"
    if any(OUTPUT_IMAGE in text for text in (record.question, *record.options)):
        return f"its text holds {OUTPUT_IMAGE}, which stands for the model's own mental images"
    if (record.video is None) == (record.frames is None):
        return "it needs either a video or frames"
    if record.timestamps is not None and len(record.timestamps) != len(record.frames or ()):
        return f"{len(record.timestamps)} timestamps for {len(record.frames or ())} frames"
    return None
