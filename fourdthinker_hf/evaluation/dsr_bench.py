"""Reads DSR-Bench, of TencentARC's DSR Suite: 1,450 questions in 13 tasks about how things move in 563 videos.

It is a folder with `benchmark.parquet`, and the videos as `videos/{videoID}.mp4` or beside that file. The columns are
`videoID` (in some copies `video`), `question`, `options`, `answer` (a letter) and `type`. The options are a list of
"A. text", or such a list as JSON or Python text. The letters are removed, because the prompt adds its own.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

from ..data.question_vocabulary import DSR_TASKS
from ..data.records import LETTERS, Record

FILE = "benchmark.parquet"


def load(path: Path, question: Callable) -> list[Record] | None:
    """The questions in the file's order, or None if `path` is not a folder with `benchmark.parquet`."""
    file, videos, records = path / FILE, path / "videos", []
    if not file.is_file():
        return None
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('reading DSR-Bench needs pyarrow: pip install "fourdthinker-hf[train]"') from error
    try:
        for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist()):
            with question(f"{file}, row {number}") as check:
                records.append(check(_record(number, row, videos if videos.is_dir() else path)))
    except KeyError as error:
        raise ValueError(f"{file}: this is not the schema of DSR-Bench, which has a column {error}") from error
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file}: it cannot be read as DSR-Bench: {error}") from error
    return records


def _record(number: int, row: dict, folder: Path) -> Record:
    video = str(row["videoID"] if "videoID" in row else row["video"]).removesuffix(".mp4")
    options, answer, task = _options(row["options"]), row["answer"].strip().rstrip("."), row["type"]
    if task not in DSR_TASKS or len(answer) != 1 or answer not in LETTERS[: len(options)]:
        raise ValueError(f"type {task!r}, answer {row['answer']!r} of {len(options)} options")
    return Record(
        id=f"{number:04}-{video}",
        question=row["question"].strip(),
        options=options,
        answer=options[LETTERS.index(answer)],
        task=task,
        video=str(folder / f"{video}.mp4"),
    )


def _options(options: list[str] | str) -> list[str]:
    if isinstance(options, str):
        options = json.loads(options) if options.startswith('["') else ast.literal_eval(options)
    lettered = [re.fullmatch(rf"\s*{LETTERS[i]}\s*[.:)](.*)", text, re.DOTALL) for i, text in enumerate(options)]
    return [(match[1] if all(lettered) else text).strip() for match, text in zip(lettered, options, strict=True)]
