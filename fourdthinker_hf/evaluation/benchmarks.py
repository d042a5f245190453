"""Benchmarks by their own files: one loader each, which knows its files by their looks.

A loader is a function `load(path) -> list[Record] | None`: the questions of the benchmark that lies at `path`, or None
if what lies there is not its kind; a `ValueError` names file, place and reason if it is, but cannot be read. The next
benchmark is one file like `dsr_bench.py`, and its `load` in `LOADERS`. No loader looks for videos: a question whose
video is not there is the runner's affair.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from ..data.records import Record, read_records
from ..processing_fourdthinker import OUTPUT_IMAGE
from . import dsr_bench


def load_benchmark(path: str | os.PathLike) -> list[Record]:
    """The questions at `path`, each with options, its answer among them, and an id of its own. `ValueError` if not."""
    path = Path(path).absolute()
    if not path.exists():
        raise ValueError(f"{path}: no such benchmark, neither a file nor a folder")
    for load in LOADERS:
        if (records := load(path)) is not None:
            _check(path, records)
            return records
    raise ValueError(
        f"{path}: no benchmark there: neither a JSONL file of records, nor a folder with records.jsonl, nor a folder "
        f"with {dsr_bench.FILE}"
    )


def load_jsonl(path: Path) -> list[Record] | None:
    """Records of our schema or of the published RL set: a JSONL file, or a folder that holds `records.jsonl`. What
    answering does not need, reasoning and imagery, is dropped."""
    path = path / "records.jsonl" if path.is_dir() else path
    if path.suffix not in (".jsonl", ".json") or not path.exists():
        return None
    return [replace(record, reasoning=None, imagery=[]) for record in read_records(path, check=None)]


LOADERS = (dsr_bench.load, load_jsonl)


def missing_files(record: Record) -> list[str]:
    """Of the files that the question shows, those that are not there."""
    return [path for path in (record.frames or [record.video]) if not os.path.isfile(path)]


def questions_hash(records: list[Record]) -> str:
    """SHA-256 of what is asked: ids, questions, options, answers, tasks and names of videos, wherever they lie."""
    rows = [
        [r.id, r.question, r.options, r.answer, r.task, *(os.path.basename(name) for name in r.frames or [r.video])]
        for r in records
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _check(path: Path, records: list[Record]) -> None:
    if not records:
        raise ValueError(f"{path}: holds no questions")
    seen = set()
    for record in records:
        if reason := "its id is also another's" if record.id in seen else _fault(record):
            raise ValueError(f"{path}: question {record.id!r} cannot be asked: {reason}")
        seen.add(record.id)


def _fault(record: Record) -> str | None:
    if not record.options or len(record.options) < 2:
        return "it has no options to choose from, and an open answer cannot be judged"
    if record.answer not in record.options:
        return f"the answer {record.answer!r} is not among the options {record.options}"
    if any(OUTPUT_IMAGE in text for text in (record.question, *record.options)):
        return f"{OUTPUT_IMAGE} stands for the model's own mental images and cannot be asked about"
    if (record.video is None) == (record.frames is None):
        return "it needs either a video or frames"
    if record.timestamps is not None and len(record.timestamps) != len(record.frames or ()):
        return f"{len(record.timestamps)} timestamps for {len(record.frames or ())} frames"
    return None
