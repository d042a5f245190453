"""Writes output files so that none is ever half-written and the work of one command never mixes with another's.

A command that continues after an interruption calls [`claim`] before it writes anything. The file `work.json` beside
its output holds what its results depend on: the settings, and hashes of its inputs. The same work is continued. Other
work is refused, and so is the same work while another process does it.
"""

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows: two processes that do the same work at once are not noticed there
    fcntl = None

WORK = "work.json"
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@contextmanager
def claim(path: Path, work: dict[str, Any], results: Sequence[Path] = (), shared: bool = False) -> Iterator[None]:
    """Claim the output beside the file `path`, which holds `work`, for as long as the context lasts.

    The system ends a claim with its process, in whatever way that ends.

    Args:
        path: a JSON file. If it is not there it is written, with its folder.
        work: all on which the results depend, as JSON can hold it. Inputs are given as hashes.
        results: output files. If one exists although `path` does not, it is of unknown work.
        shared: whether several processes may be at this work.

    Raises `ValueError` if `path` holds other work, if a result is of unknown work, or, unless `shared`, if another
    process has claimed `path`.
    """
    path = Path(path).absolute()
    found = next((result for result in results if result.exists()), None)
    is_new = not path.exists() or path.stat().st_size == 0  # empty: a kill came before it was written
    if found and is_new:
        raise ValueError(f"{found} is there without a {path.name} that says of what it was made: choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        _lock(file, path, wait=shared)
        file.seek(0)
        text = file.read()
        if not text:
            file.write(json.dumps(work, indent=1) + "\n")
            file.flush()
        else:
            _compare(path, text, json.loads(json.dumps(work)))
        if shared and fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_UN)
        yield


def check_new_folder(dest: Path) -> None:
    """Raise a `ValueError` unless the folder `dest` can be made: it does not exist, or is empty."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest}: exists already and is not an empty folder; choose another")


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """A folder to write into, which becomes the folder `dest` if the context ends without an error.

    It lies beside `dest`, in `.NAME.part`. After a kill that stays, until the next call for `dest` replaces it. Raises
    `ValueError` if `dest` is there and not empty, or if another process makes it.
    """
    scratch = dest.with_name(f".{dest.name}.part")
    with claim(scratch / WORK, {"makes": dest.name}):
        try:
            check_new_folder(dest)  # the process that made it may have ended just now
            result = scratch / dest.name
            shutil.rmtree(result, ignore_errors=True)
            result.mkdir()
            yield result
            if dest.exists():
                dest.rmdir()
            result.rename(dest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _lock(file: TextIO, path: Path, wait: bool) -> None:
    """Lock a file. Unlike flock, this is not passed on to processes that this one starts."""
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{path}: another process is at this work; wait until it ends") from error


def _compare(path: Path, text: str, work: dict[str, Any]) -> None:
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: it should say of what the files beside it were made, but {error}") from error
    names = [name for name in dict.fromkeys([*before, *work]) if before.get(name) != work.get(name)]
    if "command" in names:
        names = ["command"]  # another command's settings are all others
    differences = [f"{name} was {before.get(name)}, now {work.get(name)}" for name in names]
    if differences:
        place = path.parent if path.name == WORK else path
        raise ValueError(f"{place} holds another run ({'; '.join(differences)}): choose another place for the output")


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of the content of a file. It is kept until the file changes. Raises `OSError` for what is no plain file,
    such as a pipe, whose content may never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path}: this is no plain file")
    return _file_hash(os.fspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _file_hash(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: Iterable[str | os.PathLike]) -> str:
    """SHA-256 of the contents of files, in this order."""
    return hashlib.sha256("".join(map(file_hash, paths)).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, of this project and of the packages that decide what a command makes."""
    found = {name: importlib.metadata.version(name) for name in packages}
    try:
        found["fourdthinker"] = importlib.metadata.version("fourdthinker-hf")
    except importlib.metadata.PackageNotFoundError:  # the code runs from a checkout that is not installed
        found["fourdthinker"] = "not installed"
    return {**found, "python": platform.python_version()}


def make_writable(folder: Path) -> None:
    """Make a folder if it is not there. Raises `OSError` if it holds no place for a file of this process, so that this
    is known before long work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def is_file_refused(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or that a file may not be read or written, in the words of Python,
    safetensors or PyTorch. The last does not say why."""
    words = (*map(os.strerror, REFUSED), "PytorchStreamWriter failed writing")
    return getattr(error, "errno", None) in REFUSED or any(told in str(error) for told in words)


@contextmanager
def whole_file(path: Path, claimed: bool = False) -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of `path` at the end: a reader finds the old file or
    the whole new one. After an error the old one stays.

    Other processes may write the same file at the same time. If the place is `claimed`, they cannot, and what a kill
    leaves of this call is replaced by the next one.
    """
    temporary = path.with_name(f"{path.name}.tmp" if claimed else f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str, claimed: bool = False) -> Path:
    """Write a text as [`whole_file`] does. Returns `path`."""
    with whole_file(path, claimed) as temporary:
        _write(temporary, "w", text)
    return path


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a file and force them to disk. A line that a kill cut before is removed first."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
    _write(path, "a", "".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> list[str]:
    """The lines of a file, none if it is not there. A last line without its newline was cut by a kill and is left
    out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]


def _write(path: Path, mode: str, text: str) -> None:
    """Write to disk. An `OSError` says what to do."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. What was written before is safe: mend that and run the same command"
        ) from error
