"""Reads benchmarks from their own files.

A loader is a function `load(path, question) -> list[Record] | None`. It returns the questions of the benchmark at
`path`, or None if `path` is not in its format. If the format is right but the file cannot be read, it raises a
`ValueError` that names the file and the reason. Each question is read inside `with question(place) as check:` and goes
through `check(record)`, which returns it. An error there leaves the question out if the caller allows that. To add a
benchmark, write a file like `dsr_bench.py` and add its `load` to `LOADERS`. Loaders do not check that videos exist;
the runner does.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..checkpoints import explain_missing_data
from ..data.question_vocabulary import DSR_TASKS
from ..data.records import LETTERS, Record, RecordError, RecordFiles, check_video
from ..processing_fourdthinker import OUTPUT_IMAGE
from . import dsr_bench


def load_benchmark(
    path: str | os.PathLike, refused: list[str] | None = None, places: dict[str, str] | None = None
) -> list[Record]:
    """The questions at `path`. Raises `ValueError` unless each has options, one of them the answer, and its own id.
    With a list `refused`, a question that does not is left out, and a message with file, line and reason is added.
    `places` gets the file and line of each question, by its id."""
    name, path = str(path), Path(path).absolute()
    places = {} if places is None else places

    @contextmanager
    def question(place: str) -> Iterator[Callable[[Record], Record]]:
        def check(record: Record) -> Record:
            if reason := "another question has the same id" if record.id in places else _why_unusable(record):
                raise ValueError(f"question {record.id!r} cannot be asked: {reason}")
            places[record.id] = place
            return record

        try:
            yield check
        except (ValueError, SyntaxError, TypeError, AttributeError) as error:
            message = str(error) if isinstance(error, RecordError) else f"{place}: {error}"
            if refused is None:
                raise ValueError(message) from error
            refused.append(message)

    if not path.exists():
        raise ValueError(explain_missing_data(name))
    for load in LOADERS:
        if (records := load(path, question)) is not None:
            if not records:
                raise ValueError("; ".join([f"{path} holds no questions that can be asked", *(refused or ())]))
            return records
    raise ValueError(
        f"{path} is no benchmark: neither a JSONL file of records, nor a folder with records.jsonl, nor a folder with "
        f"{dsr_bench.FILE}"
    )


def load_jsonl(path: Path, question: Callable) -> list[Record] | None:
    """The records of a JSONL file or a JSON array, or of `records.jsonl` in a folder, in any schema of `data.records`.
    Their reasoning and imagery are dropped, since answering does not need them."""
    path = path / "records.jsonl" if path.is_dir() else path
    if path.suffix not in (".jsonl", ".json") or not path.exists():
        return None
    files, records = RecordFiles([path], check=None), []
    for index in range(len(files)):
        with question(files.location(index)) as check:
            records.append(replace(check(files[index]), reasoning=None, imagery=[]))
    return records


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


def _why_unusable(record: Record) -> str | None:
    if not record.options or len(record.options) < 2:
        return "it has no options to choose from, and an open answer cannot be judged"
    if len(record.options) > len(LETTERS):
        return f"it has {len(record.options)} options, and only {len(LETTERS)} have a letter"
    if record.answer not in record.options:
        return f"the answer {record.answer!r} is not among the options {record.options}"
    if any(OUTPUT_IMAGE in text for text in (record.question, *record.options)):
        return f"its text holds {OUTPUT_IMAGE}, which stands for the model's own mental images"
    if (record.video is None) == (record.frames is None):
        return "it needs either a video or frames"
    if record.timestamps is not None and len(record.timestamps) != len(record.frames or ()):
        return f"{len(record.timestamps)} timestamps for {len(record.frames or ())} frames"
    try:
        check_video(record)
    except ValueError as error:
        return str(error)
    return None
