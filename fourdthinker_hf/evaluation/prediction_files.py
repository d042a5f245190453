"""The files of a run of `evaluate`, written so that a run that is killed at any moment can be resumed.

The main process appends its rows to `predictions.jsonl`, each other process to a file of its own. Rows are written one
batch at a time and forced to disk. At the start and at the end the main process merges these files in the benchmark's
order: the merged file replaces the old one in one step, and only then are the others deleted. So every row is always
in a file, and a row that is in two files counts once. `report.json` holds the settings from the start, and the results
when the run is finished.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from ..distributed import DistributedState
from .report import format_report, summary

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"
# Settings that say where a thing is. A resumed run may find it elsewhere: its content is compared by its hash.
PATH_SETTINGS = ("model", "revision", "subfolder", "benchmark")


class RunOutputs:
    """The folder of a run. `rows` holds the rows, by id, that were on disk when this call began."""

    def __init__(self, folder: Path, distributed: DistributedState, ids: list[str]):
        self.folder, self.distributed, self.ids = folder, distributed, ids
        name = PREDICTIONS if distributed.is_main_process else f"predictions.part{distributed.rank}"
        self.own_file = folder / name
        self.rows: dict[str, dict] = {}

    def open(self, settings: dict, ask_again: set[str]) -> None:
        """Create the folder, or resume the run in it.

        A row without a response is dropped if its id is in `ask_again`. Raises `ValueError` if the folder holds a run
        with other settings.
        """
        if self.distributed.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_settings(settings)
            self._merge_files(ask_again)
        self.distributed.wait_for_everyone()
        self.rows = _read_rows(self.folder / PREDICTIONS)
        self.num_answered, self.num_correct = len(self.rows), sum(row["correct"] for row in self.rows.values())
        self.distributed.wait_for_everyone()  # no process may write before all have read

    def write(self, rows: list[dict]) -> None:
        """Append the rows that are not on disk yet to this process's file, and force them to disk."""
        rows = [row for row in rows if row["id"] not in self.rows]
        _write(self.own_file, "a", "".join(json.dumps(row) + "\n" for row in rows))
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
        settings = json.loads((self.folder / REPORT).read_text())["settings"]
        results = summary([rows[name] for name in self.ids])
        report = {"settings": settings, **results, "left_out": left_out, "this_call": this_call}
        write_whole(self.folder / "report.md", format_report(report))
        write_whole(self.folder / REPORT, json.dumps(report, indent=1))
        return report

    def _check_settings(self, settings: dict) -> None:
        path = self.folder / REPORT
        if path.exists():
            before = json.loads(path.read_text()).get("settings", {})
            differences = [
                f"{key} was {before.get(key)}, now {settings.get(key)}"
                for key in dict.fromkeys([*before, *settings])
                if key not in PATH_SETTINGS and before.get(key) != settings.get(key)
            ]
            if differences:
                raise ValueError(f"{self.folder} holds another run ({'; '.join(differences)}): choose another folder")
        elif (self.folder / PREDICTIONS).exists():
            raise ValueError(f"{self.folder} holds a {PREDICTIONS} but no {REPORT}: choose another folder")
        else:
            write_whole(path, json.dumps({"settings": settings}, indent=1))

    def _merge_files(self, ask_again: set[str] = frozenset()) -> None:
        path, rows = self.folder / PREDICTIONS, {}
        others = sorted(self.folder.glob("predictions.part*"))
        for source in (path, *others):
            rows |= _read_rows(source)
        kept = [rows[name] for name in self.ids if name in rows]
        kept = [row for row in kept if row["response"] is not None or row["id"] not in ask_again]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text)
        for other in others:
            other.unlink()


def _read_rows(path: Path) -> dict[str, dict]:
    """The rows of a file by id. A last line without its newline was cut by a kill and is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {row["id"]: row for row in rows}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what a model answers."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    try:
        packages["fourdthinker"] = importlib.metadata.version("fourdthinker-hf")
    except importlib.metadata.PackageNotFoundError:  # the code runs from a checkout that is not installed
        packages["fourdthinker"] = "not installed"
    return {**packages, "python": platform.python_version()}


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


def write_whole(path: Path, text: str) -> Path:
    """Write a file in one step: a reader finds the old file or the whole new one. Returns `path`."""
    temporary = path.with_name(path.name + ".tmp")
    _write(temporary, "w", text)
    os.replace(temporary, path)
    return path


def _write(path: Path, mode: str, text: str) -> None:
    """Write to disk. The `OSError` of a full disk says what to do."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. What was written before is safe: make room and run the same command"
        ) from error
