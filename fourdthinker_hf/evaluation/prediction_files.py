"""The files of a run of `evaluate`, written so that a run that is killed at any moment can be resumed.

The main process appends its rows to `predictions.jsonl`, each other process to a file of its own. Rows are written one
batch at a time and forced to disk. At the start and at the end the main process merges these files in the benchmark's
order: the merged file replaces the old one in one step, and only then are the others deleted. So every row is always
in a file, and a row that is in two files counts once. `work.json` holds the settings from the start; `report.json` has
them and the results when the run is finished.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..data.records import Record, check_same_clip
from ..distributed import DistributedState
from ..output_files import WORK, append_lines, claim, read_lines, write_whole
from .report import format_report, summary

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"
# Settings that say where a thing is. A resumed run may find it elsewhere: its content is compared by its hash.
PATH_SETTINGS = ("model", "revision", "subfolder", "benchmark")


class RunOutputs:
    """The folder of a run on `records`. `rows` holds the rows, by id, that were on disk when this call began."""

    def __init__(self, folder: Path, distributed: DistributedState, records: list[Record], settings: dict):
        self.folder, self.distributed, self.settings = folder, distributed, settings
        self.records = {record.id: record for record in records}
        name = PREDICTIONS if distributed.is_main_process else f"predictions.part{distributed.rank}"
        self.own_file = folder / name
        self.rows: dict[str, dict] = {}

    @contextmanager
    def open(self, ask_again: set[str]) -> Iterator[None]:
        """Claim the folder, which is created or has a part of the same run, and read the rows in it.

        A row without a response is dropped if its id is in `ask_again`. Raises `ValueError` if the folder holds a run
        with other settings, or a row is about a clip whose files have changed since.
        """
        work = {name: value for name, value in self.settings.items() if name not in PATH_SETTINGS}
        results = [self.folder / PREDICTIONS, self.folder / REPORT]
        is_main = self.distributed.is_main_process
        with claim(self.folder / WORK, {"command": "evaluate", **work}, results) if is_main else nullcontext():
            if is_main:
                self._merge_files(ask_again)
                self._check_clips()
            self.distributed.wait_for_everyone()
            self.rows = _read_rows(self.folder / PREDICTIONS)
            self.num_answered, self.num_correct = len(self.rows), sum(row["correct"] for row in self.rows.values())
            self.distributed.wait_for_everyone()  # no process may write before all have read
            yield

    def write(self, rows: list[dict]) -> None:
        """Append the rows that are not on disk yet to this process's file, and force them to disk."""
        rows = [row for row in rows if row["id"] not in self.rows]
        append_lines(self.own_file, [json.dumps(row) for row in rows])
        self.num_answered += len(rows)
        self.num_correct += sum(row["correct"] for row in rows)

    @property
    def accuracy(self) -> float:
        return self.num_correct / max(self.num_answered, 1)

    def write_report(self, left_out: list[str], this_call: dict) -> dict | None:
        """In the main process, merge the rows of all processes, write the report and return it. All must have written
        their rows. `left_out` has a message for each question that could not be asked."""
        if not self.distributed.is_main_process:
            return None
        self._merge_files()
        rows = _read_rows(self.folder / PREDICTIONS)
        results = summary([rows[name] for name in self.records])
        report = {"settings": self.settings, **results, "left_out": left_out, "this_call": this_call}
        write_whole(self.folder / "report.md", format_report(report), claimed=True)
        write_whole(self.folder / REPORT, json.dumps(report, indent=1), claimed=True)
        return report

    def _merge_files(self, ask_again: set[str] = frozenset()) -> None:
        path, rows = self.folder / PREDICTIONS, {}
        others = sorted(self.folder.glob("predictions.part*"))
        for source in (path, *others):
            rows |= _read_rows(source)
        kept = [rows[name] for name in self.records if name in rows]
        kept = [row for row in kept if row["response"] is not None or row["id"] not in ask_again]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text, claimed=True)
        for other in others:
            other.unlink()

    def _check_clips(self) -> None:
        for name, row in _read_rows(self.folder / PREDICTIONS).items():
            check_same_clip(self.records[name], row["clip_sha256"], self.folder)


def _read_rows(path: Path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, read_lines(path))}


def commit() -> str | None:
    """The commit of the checkout that this code is in, marked if files were changed since, or None without a
    checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}{' with changes' if changed.strip() else ''}"
