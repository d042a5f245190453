"""What a run leaves on disk, and how it survives being killed at any moment.

The main process appends its rows to `predictions.jsonl`, every other to a part of its own. Rows are written a batch at
a time and forced to disk. The main process joins them in the benchmark's order at the start and at the end: the joined
file replaces the old one whole, and only then do parts go; so a row is always in one of them, and one that is in two
counts once. `report.json` holds the run's settings from the start, and everything when it is done.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import timedelta
from pathlib import Path

import torch

from .report import format_report, summary

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"
NAMES = ("model", "benchmark")  # where they lie: what they hold is compared, by hash


class Processes:
    """How many processes share the work, and which this one is: those of `accelerate launch`, or one."""

    def __init__(self):
        self.index, self.count = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError('several processes need accelerate: pip install "fourdthinker-hf[train]"') from error
            cpu = not torch.cuda.is_available()
            self.state = PartialState(cpu=cpu, timeout=timedelta(days=7))  # the slowest may be late
            self.index, self.count = self.state.process_index, self.state.num_processes
            self.device = self.state.device

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        if self.count > 1:
            self.state.wait_for_everyone()


class Outputs:
    """The folder of a run. `rows` are those on disk when this call began, by id."""

    def __init__(self, folder: Path, processes: Processes, ids: list[str]):
        self.folder, self.processes, self.ids = folder, processes, ids
        self.own = folder / (PREDICTIONS if processes.is_main else f"predictions.part{processes.index}")
        self.rows: dict[str, dict] = {}

    def begin(self, settings: dict, again: set[str]) -> None:
        """Make the folder or take up what it holds. A row without response is dropped if its id is in `again`.
        `ValueError` if the folder holds another run."""
        if self.processes.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check(settings)
            self._join(again)
        self.processes.wait()
        self.rows = self._read(self.folder / PREDICTIONS)
        self.num_answered, self.num_correct = len(self.rows), sum(row["correct"] for row in self.rows.values())
        self.processes.wait()  # nobody writes before everybody has read

    def write(self, rows: list[dict]) -> None:
        """Append to this process's file, those rows that are not there yet, and force them to disk."""
        rows = [row for row in rows if row["id"] not in self.rows]
        _write(self.own, "a", "".join(json.dumps(row) + "\n" for row in rows))
        self.num_answered += len(rows)
        self.num_correct += sum(row["correct"] for row in rows)

    @property
    def accuracy(self) -> float:
        return self.num_correct / max(self.num_answered, 1)

    def finish(self, this_call: dict) -> dict | None:
        """Once every process has written its rows: join them, write the report and return it (in the main process)."""
        if not self.processes.is_main:
            return None
        self._join()
        rows = self._read(self.folder / PREDICTIONS)
        settings = json.loads((self.folder / REPORT).read_text())["settings"]
        report = {"settings": settings, **summary([rows[name] for name in self.ids]), "this_call": this_call}
        _replace(self.folder / "report.md", format_report(report))
        _replace(self.folder / REPORT, json.dumps(report, indent=1))
        return report

    def _check(self, settings: dict) -> None:
        path = self.folder / REPORT
        if path.exists():
            before = json.loads(path.read_text()).get("settings", {})
            differs = [
                f"{key} was {before.get(key)}, now {settings.get(key)}"
                for key in dict.fromkeys([*before, *settings])
                if key not in NAMES and before.get(key) != settings.get(key)
            ]
            if differs:
                raise ValueError(f"{self.folder} holds another run ({'; '.join(differs)}): choose another folder")
        elif (self.folder / PREDICTIONS).exists():
            raise ValueError(f"{self.folder} holds a {PREDICTIONS} but no {REPORT}: choose another folder")
        else:
            _replace(path, json.dumps({"settings": settings}, indent=1))

    def _join(self, again: set[str] = frozenset()) -> None:
        path, found = self.folder / PREDICTIONS, {}
        parts = sorted(self.folder.glob("predictions.part*"))
        for source in (path, *parts):
            found |= self._read(source)
        kept = [found[name] for name in self.ids if name in found]
        kept = [row for row in kept if row["response"] is not None or row["id"] not in again]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            _replace(path, text)
        for part in parts:
            part.unlink()

    @staticmethod
    def _read(path: Path) -> dict[str, dict]:
        """Rows by id; a last line cut by a kill is no row."""
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return {row["id"]: row for row in rows}


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    try:
        found["fourdthinker"] = importlib.metadata.version("fourdthinker-hf")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        found["fourdthinker"] = "not installed"
    return {**found, "python": platform.python_version()}


def commit() -> str | None:
    """Of the checkout that this code lies in, marked if files differ from it; None if it lies in none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}{' with changes' if changed.strip() else ''}"


def _replace(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    _write(aside, "w", text)
    os.replace(aside, path)


def _write(path: Path, mode: str, text: str) -> None:
    """Onto the disk, or an `OSError` that says where there was no room."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. The rows written before are safe: make room and run the same command"
        ) from error
