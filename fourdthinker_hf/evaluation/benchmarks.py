"""Benchmarks by their own files: one loader each, which knows its files by their looks.

A loader is a function `load(path) -> list[Record] | None`: the questions of the benchmark that lies at `path`, or None
if what lies there is not its kind; a `ValueError` names file, place and reason if it is, but cannot be read. The next
benchmark is one file like `dsr_bench.py`, and its `load` in `LOADERS`. No loader looks for videos: a question whose
video is not there is the runner's affair.
"""

import hashlib
import json
import os
from pathlib import Path

from ..data.records import LETTERS, Record, RecordError, from_ours, from_rl
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
    """Records of our schema or of the published RL set: a JSONL file, or a folder that holds `records.jsonl`."""
    path = path / "records.jsonl" if path.is_dir() else path
    if path.suffix not in (".jsonl", ".json") or not path.exists():
        return None
    records = []
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                try:
                    records.append(_question(json.loads(text), line, path.parent))
                except (ValueError, KeyError, TypeError) as error:
                    reason = f"missing field {error}" if isinstance(error, KeyError) else str(error)
                    raise RecordError(f"{path}, line {line}: {reason}") from error
    return records


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


def _question(row, line: int, folder: Path) -> Record:
    """One row, without what answering does not need: reasoning and imagery."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    values = from_rl(row, line) if "Correct" in row else from_ours(row)
    values |= {"id": str(values["id"]), "reasoning": None, "imagery": []}
    options, answer = values.get("options") or [], values["answer"]
    if answer not in options and len(answer) == 1 and answer in LETTERS[: len(options)]:
        values["answer"] = options[LETTERS.index(answer)]
    if values.get("video") is not None:
        values["video"] = os.path.normpath(folder / values["video"])
    if values.get("frames") is not None:
        values["frames"] = [os.path.normpath(folder / name) for name in values["frames"]]
    return Record(**values)


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
    if record.frames is not None and len(record.timestamps or ()) != len(record.frames):
        return f"{len(record.timestamps or ())} timestamps for {len(record.frames)} frames"
    return None
