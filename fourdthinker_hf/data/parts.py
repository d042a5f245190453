"""Makes the records of a folder in parts, in worker processes. A run that is killed loses only the parts in progress,
and no worker outlives it."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..output_files import WORK, claim
from .records import Record, RecordError, read_records, write_records

PARTS = "parts"


def make_records(
    out: Path, work: dict[str, Any], jobs: Sequence, make: Callable[[Any], list[Record]], workers: int, progress: bool
) -> Path:
    """Write `out/records.jsonl`, the records that `make(job)` makes of each of `jobs` in turn, and return its path.

    `make` writes the files of the records to `out/videos` and `out/images`. If `out` has a part of the same `work`,
    only what is missing is made. Raises `ValueError` if `out` holds other work, and `OSError` if a worker dies.
    """
    path, results = out / "records.jsonl", [out / name for name in ("records.jsonl", "videos", "images", PARTS)]
    with claim(out / WORK, work, results):
        if path.exists() and _fits_its_files(path):
            return path
        for folder in ("videos", "images", PARTS):
            (out / folder).mkdir(exist_ok=True)
        parts = [out / PARTS / f"{number:06d}.jsonl" for number in range(len(jobs))]
        todo = [(part, job) for part, job in zip(parts, jobs, strict=True) if not _fits_its_files(part)]
        with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="part", disable=not progress) as bar:
            for _ in _map(partial(_make_part, make), todo, workers):
                bar.update()
        write_records(path, (record for part in parts for record in read_records(part, check=None)))
        shutil.rmtree(out / PARTS)
    return path


def _fits_its_files(path: Path) -> bool:
    """Whether a file of records is there, and the files that it names are those that were made with it."""
    try:
        read_records(path)
    except (RecordError, OSError):
        return False
    return True


def _make_part(make: Callable[[Any], list[Record]], part: tuple[Path, Any]) -> None:
    path, job = part
    write_records(path, make(job))


def _map(function: Callable, items: Sequence, workers: int) -> Iterator:
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, initializer=end_with_parent)
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died: it was killed, perhaps for lack of memory. What was made before is kept: run the "
            "same command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Let this worker process end when the process that started it ends, in whatever way."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
