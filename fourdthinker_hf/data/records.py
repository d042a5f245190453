"""Records: a JSONL file with one question about one clip on each line. Three schemas are read, the first is written.
A JSON array of such objects is read, too, and a byte order mark is skipped.

1. Ours, with the fields of [`Record`]: `id`, `question`, `answer`, and `video` or `frames` are required.
2. The published DIFT set: `id, text_input, text_output, image_input[], image_output[]`. `text_output` is
   `<think>reasoning</think><answer>answer</answer>`.
3. The published RL set: `Question, A, B, C, D, Correct, video_path | frame_paths`.

An answer may be given as the letter of its option. In the file, paths are relative to the file's folder, which the
published sets call `./data/`; in a [`Record`] they are absolute. [`check_trainable`] says what makes a record unfit
for training.
"""

import codecs
import hashlib
import json
import logging
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..output_files import file_hash, files_hash
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor

logger = logging.getLogger(__name__)

LETTERS = "ABCDEFGH"  # of the options, in their order
THINK_ANSWER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


MAX_RATIO = 200  # of a picture's sides: Qwen2.5-VL's processor refuses a longer one, without naming the file


class RecordError(ValueError):
    """A line is not a usable record. The message names the file, the line and the reason."""


@dataclass
class Record:
    """One question about one clip, which is either a `video` or a list of `frames`. Paths are absolute."""

    id: str
    question: str
    answer: str  # the text of the right option, or free text if there are no options
    options: list[str] | None = None
    task: str | None = None  # the kind of question; accuracies are reported for each
    reasoning: str | None = None  # with one `<output_image>` for each entry of `imagery`
    imagery: list[str] | tuple[str, ...] = ()  # image files of the target frames, one for each mental image
    video: str | None = None
    frames: list[str] | None = None  # image files
    timestamps: list[float] | None = None  # s of each frame; by default they are 1 / (the processor's fps) apart
    source: dict[str, Any] | None = None  # where the record comes from; training ignores it

    def __post_init__(self) -> None:
        self.imagery = list(self.imagery)


def _from_ours(row: dict[str, Any]) -> dict[str, Any]:
    return {field.name: row[field.name] for field in fields(Record) if row.get(field.name) is not None}


def _from_dift(row: dict[str, Any]) -> dict[str, Any]:
    match = THINK_ANSWER.fullmatch(row["text_output"])
    if match is None:
        raise ValueError("text_output is not <think>...</think><answer>...</answer>")
    reasoning, answer = (part.strip() for part in match.groups())
    return {
        "id": row["id"],
        "question": row["text_input"],
        "answer": answer,
        "reasoning": reasoning,
        "frames": row["image_input"],
        "imagery": row["image_output"],
        "task": "published_dift",
    }


def _from_rl(row: dict[str, Any], line: int) -> dict[str, Any]:
    options = [row[letter] for letter in "ABCD" if row.get(letter) is not None]
    return {
        "id": row.get("id", f"line{line}"),
        "question": row["Question"],
        "options": options,
        "answer": row["Correct"],
        "video": row.get("video_path"),
        "frames": row.get("frame_paths"),
        "task": row.get("Type", "published_rl"),
    }


def check_trainable(record: Record) -> None:
    """Raise a `ValueError` that says why the record cannot be trained on. All its files must exist."""
    count = (record.reasoning or "").count(OUTPUT_IMAGE)
    if count != len(record.imagery):
        raise ValueError(f"{count} {OUTPUT_IMAGE} in the reasoning but {len(record.imagery)} images in imagery")
    if (record.video is None) == (record.frames is None):
        raise ValueError("needs either a video or frames")
    if record.timestamps is not None and len(record.timestamps) != len(record.frames or ()):
        raise ValueError(f"{len(record.timestamps)} timestamps for {len(record.frames or ())} frames")
    if record.options is not None and not 2 <= len(record.options) <= len(LETTERS):
        raise ValueError(f"{len(record.options)} options, where 2 to {len(LETTERS)} can be asked")
    if record.options is not None and record.answer not in record.options:
        raise ValueError(f"the answer {record.answer!r} is not among the options {record.options}")
    if record.timestamps and any(b <= a for a, b in pairwise(record.timestamps)):
        raise ValueError(f"timestamps must increase: {record.timestamps}")
    for path in [record.video, *(record.frames or ()), *record.imagery]:
        if path is not None and not os.path.isfile(path):
            raise ValueError(f"missing file {path}")
    check_video(record)


def check_video(record: Record) -> None:
    """Raise a `ValueError` if the record says of which video it was made (`source["video_sha256"]`), but its video is
    there and another one."""
    made_of = (record.source or {}).get("video_sha256")
    if made_of and clip_hash(record) not in (None, made_of):
        raise ValueError(f"{record.video}: this is not the video that the record was made of; make both again")


def clip_hash(record: Record) -> str | None:
    """SHA-256 of the content of the record's video, or of its frames; None if a file cannot be read."""
    try:
        if record.video is not None:
            return file_hash(record.video)
        return files_hash(record.frames)
    except OSError:
        return None


def records_hash(records: Iterable[Record]) -> str:
    """SHA-256 of all that records say, wherever their files are. [`clip_hash`] is that of their clips."""
    digest = hashlib.sha256()
    for record in records:
        told = {name: value for name, value in vars(record).items() if name not in ("video", "frames", "imagery")}
        digest.update(json.dumps(told).encode() + b"\n")
    return digest.hexdigest()


def check_same_clip(record: Record, before: str | None, place: Path) -> None:
    """Raise a `ValueError` if the record's clip is there, but is not the one with the hash `before`, about which
    `place` holds answers."""
    if before and clip_hash(record) not in (None, before):
        raise ValueError(
            f"{place} holds answers about another video than {record.video or record.frames[0]} (question "
            f"{record.id!r}), which has changed since: choose another place for the output"
        )


def _parse(text: bytes, line: int, folder: Path) -> Record:
    row = json.loads(text.decode())
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    absolute = _absolute_published
    if "text_output" in row:
        values = _from_dift(row)
    elif "Correct" in row:
        values = _from_rl(row, line)
    else:
        values, absolute = _from_ours(row), _absolute
    values["id"] = str(values["id"])
    options, answer = values.get("options"), values["answer"]
    if options is not None and not (isinstance(options, list) and all(isinstance(text, str) for text in options)):
        raise ValueError(f"the options must be a list of texts, not {options!r}")
    if options and answer not in options and answer in LETTERS[: len(options)] and len(answer) == 1:
        values["answer"] = options[LETTERS.index(answer)]
    if values.get("video") is not None:
        values["video"] = absolute(folder, values["video"])
    for name in ("frames", "imagery"):
        if values.get(name) is not None:
            values[name] = [absolute(folder, path) for path in values[name]]
    return Record(**values)


def _absolute(folder: Path, path: str) -> str:
    """A path of a record starts at the folder of its file. It may lead anywhere on this machine: `filter` writes `../`
    where its output lies elsewhere. What is opened is a plain file, see [`check_trainable`] and [`open_frames`]."""
    return os.path.normpath(folder / path)


def _absolute_published(folder: Path, path: str) -> str:
    """As `_absolute`, but `./data/` is the folder of the file itself, unless there is such a file in it."""
    whole = _absolute(folder, path)
    return whole if os.path.exists(whole) else _absolute(folder, re.sub(r"^(\./)?data/", "", path))


def read_records(
    path: str | os.PathLike[str],
    skip_bad: bool = False,
    check: Callable[[Record], None] | None = check_trainable,
    refused: list[str] | None = None,
) -> list[Record]:
    """Read a JSONL file, or a JSON array, of any of the three schemas.

    A record that cannot be read, or for which `check` raises a `ValueError`, raises `RecordError`. With `skip_bad` it
    is left out instead, and its message is added to `refused`. Without that list, one warning has all messages.
    """
    path = _existing(path)
    records, reasons = [], [] if refused is None else refused
    for line, _, text in _find_records(path):
        try:
            records.append(_read(text, path, line, check))
        except RecordError as error:
            reasons.append(str(error))
            if not skip_bad:
                raise
    if reasons and refused is None:
        logger.warning("skipped %d of %d records:\n%s", len(reasons), len(reasons) + len(records), "\n".join(reasons))
    return records


def _existing(path: str | os.PathLike[str]) -> Path:
    """The absolute path. Raises `FileNotFoundError` in the words of [`explain_missing_data`] if nothing is there."""
    if not os.path.exists(path):
        from ..checkpoints import explain_missing_data  # loads the model's code

        raise FileNotFoundError(explain_missing_data(str(path)))
    return Path(path).absolute()


def _read(text: bytes, path: Path, line: int, check: Callable[[Record], None] | None) -> Record:
    try:
        record = _parse(text, line, path.parent)
        if check is not None:
            check(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"missing field {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{path}, line {line}: {reason}") from error
    return record


def _find_records(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The line, the byte offset and the text of each record of a file: its lines, or the items of its array."""
    with open(path, "rb") as file:
        head = file.read(3)
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise RecordError(f"{path}, line 1: the file is UTF-16; save it as UTF-8")
        offset, is_first = (3 if head == codecs.BOM_UTF8 else 0), True
        file.seek(offset)
        for line, text in enumerate(file, start=1):
            if text.strip():
                if is_first and _begins_array(text):
                    yield from _find_items(line, offset, text + file.read())
                    return
                is_first = False
                yield line, offset, text
            offset += len(text)


def _begins_array(line: bytes) -> bool:
    """Whether a file's first line begins an array of objects, which may go on on the next lines."""
    return re.match(rb"\s*\[\s*(\{|$)", line) is not None


def _find_items(line: int, offset: int, text: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The items of an array of objects that begins at `line` and `offset`. A broken item ends where a later line
    begins an object, indented as it is itself; on a line with others, before the next whole object that follows a
    comma; or else at the end of the file."""
    characters, decoder = text.decode("latin-1"), json.JSONDecoder()  # one character a byte: positions are bytes

    def find_end(begin: int) -> int | None:
        """Where the item at `begin` ends, if it is whole."""
        try:
            end = decoder.raw_decode(characters, begin)[1]
        except (ValueError, RecursionError):
            return None
        return end if re.compile(r"\s*[,\]]").match(characters, end) else None

    begin = characters.index("[") + 1
    while (begin := begin + len(re.match(r"[\s,]*", characters[begin : begin + 1000])[0])) < len(text):
        if characters[begin:].strip() == "]":
            return
        end = find_end(begin)
        if end is None:
            indent = characters[characters.rfind("\n", 0, begin) + 1 : begin]
            if indent.strip():
                commas = re.compile(r",\s*(?=\{)").finditer(characters, begin)
                end = next((comma.start() for comma in commas if find_end(comma.end())), len(text))
            else:
                end = characters.find(f"\n{indent}{{", begin)
                end = len(text) if end < 0 else end
        yield line + text.count(b"\n", 0, begin), offset + begin, text[begin:end]
        begin = end


class RecordFiles:
    """The records of files of any of the three schemas, each read when it is indexed and checked as in `read_records`.

    Only the place of each record is kept in memory (32 bytes a record), so that files of any size can be opened and
    read in any order. A bad record raises its error when it is read.
    """

    def __init__(
        self, paths: Iterable[str | os.PathLike[str]], check: Callable[[Record], None] | None = check_trainable
    ):
        self.check = check
        self.paths = [_existing(path) for path in paths]
        positions = array("q")
        for number, path in enumerate(self.paths):
            for line, offset, text in _find_records(path):
                positions.extend((number, line, offset, len(text)))
        self.positions = np.array(positions).reshape(-1, 4)  # (records, [file, line, byte offset, bytes]) int64

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Record:
        """Raises `RecordError` if this is not a record, or not one that passes the check."""
        number, line, offset, size = self.positions[index].tolist()
        with open(self.paths[number], "rb") as file:
            file.seek(offset)
            text = file.read(size)
        return _read(text, self.paths[number], line, self.check)

    def location(self, index: int) -> str:
        """The file and line of a record."""
        number, line, *_ = self.positions[index].tolist()
        return f"{self.paths[number]}, line {line}"


def open_frames(
    processor: FourDThinkerProcessor, video: str | None, frames: list | None, timestamps: list[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Open the clip of a record: frames `(T, H, W, 3)` uint8 and their times `(T,)` float64 in seconds.

    A video is sampled at the processor's rate. `frames` are paths, PIL images or arrays; of more than the processor's
    `max_frames`, that many are opened, evenly spread. They keep their size, since the processor's call scales them.
    Raises `ValueError` or `OSError` if a file cannot be read or the frames differ in size.
    """
    if frames is None:
        return processor.open_video(video)
    times = np.arange(len(frames)) / processor.fps if timestamps is None else np.asarray(timestamps, np.float64)
    kept = np.linspace(0, len(frames) - 1, min(len(frames), processor.max_frames)).round().astype(np.int64)
    images = [open_image(frames[i]) for i in kept]
    if len(sizes := {image.shape for image in images}) > 1:
        raise ValueError(f"the frames of a clip must be of one size, got (height, width, 3) {sorted(sizes)}")
    return np.stack(images), times[kept]


def open_image(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 of a file, a PIL image or an array. Raises `OSError` if the file cannot be read, and
    `ValueError` if one side is over 200 times the other, which the model does not take."""
    name = "" if isinstance(image, (np.ndarray, Image.Image)) else f"{image}: "
    try:
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        elif not isinstance(image, np.ndarray):
            if not os.path.isfile(image):  # to open a pipe would wait for ever
                raise FileNotFoundError("no such file")
            with Image.open(image) as opened:
                image = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"{name}cannot be read as a picture: {error}") from error
    height, width = image.shape[:2]
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(f"{name}is {width} x {height} pixels, one side over {MAX_RATIO} times the other; crop it")
    return image


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write records in our schema, with paths relative to the file. The file appears whole or not at all."""
    path = Path(path).absolute()
    temporary = path.with_name(path.name + ".tmp")

    def relative(name: str) -> str:
        return os.path.relpath(name, path.parent)

    with open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            row = {key: value for key, value in vars(record).items() if value is not None and value != []}
            if "video" in row:
                row["video"] = relative(row["video"])
            for name in ("frames", "imagery"):
                if name in row:
                    row[name] = [relative(image) for image in row[name]]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
