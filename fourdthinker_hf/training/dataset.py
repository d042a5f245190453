"""Records as a `datasets.Dataset` whose rows are read, and whose videos are decoded, when the dataloader asks for
them."""

import logging
from dataclasses import dataclass, field

from datasets import Dataset

from ..data.records import RecordError, RecordFiles, open_frames
from ..processing_fourdthinker import FourDThinkerProcessor
from ..video_fourdthinker import check_header
from .collator import DIFTCollator

logger = logging.getLogger(__name__)


@dataclass
class RecordTransform:
    """Transform of a dataset with one column, `index`: it reads the records with these numbers. Subclasses define
    `make_row`, which makes a row from one number.

    With `skip_bad` the next good record takes the place of a bad one, so batches keep their size. The row's
    `num_skipped` says how many records were skipped.
    """

    files: RecordFiles
    skip_bad: bool
    bad: set[int] = field(default_factory=set, init=False)  # the numbers of the records that were found to be bad

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [self.read(index) for index in batch["index"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def read(self, index: int) -> dict:
        for num_skipped in range(len(self.files)):
            number = (index + num_skipped) % len(self.files)
            if number in self.bad:
                continue
            try:
                return {**self.make_row(number), "num_skipped": num_skipped}
            except (ValueError, OSError) as error:
                names_file = isinstance(error, RecordError)
                reason = str(error) if names_file else f"{self.files.location(number)}: {error}"
                if not self.skip_bad:
                    raise RecordError(reason) from error
                self.bad.add(number)
                logger.warning("A record is skipped and the next one takes its place: %s", reason)
        raise RecordError(f"none of the {len(self.files)} records can be used")

    def make_row(self, number: int) -> dict:
        raise NotImplementedError


@dataclass
class DIFTTransform(RecordTransform):
    """Reads a record and opens its video and target frames with `collator`."""

    collator: DIFTCollator

    def make_row(self, number: int) -> dict:
        return self.collator.open(vars(self.files[number]))


@dataclass
class GRPOTransform(RecordTransform):
    """Reads a record and adds `prompt` (the text of its question, for the logs), `index` and `where` (file and line).
    The video is not opened here: the rollout opens it once for all replies. Only with `skip_bad` it is also opened
    here, the first time that the record is read, to find out whether it can be."""

    processor: FourDThinkerProcessor
    opened: set[int] = field(default_factory=set, init=False)  # the numbers of the records that could be opened

    def make_row(self, number: int) -> dict:
        record = self.files[number]
        if self.skip_bad and number not in self.opened:
            open_frames(self.processor, record.video, record.frames, record.timestamps)
            self.opened.add(number)
        prompt = self.processor.format_question(record.question, record.options)
        return {**vars(record), "prompt": prompt, "index": number, "where": self.files.location(number)}


def record_dataset(paths: list[str], collator: DIFTCollator, skip_bad: bool = False) -> Dataset:
    """The records of files for [`DIFTTrainer`], in their order.

    Raises `RecordError` if there are none. Other errors appear when a record is reached: the run then stops with file
    and line or, with `skip_bad`, continues (see [`RecordTransform`]).
    """
    files = _record_files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(DIFTTransform(files, skip_bad, collator))


def question_dataset(paths: list[str], processor: FourDThinkerProcessor, skip_bad: bool = False) -> Dataset:
    """The records of files for [`FourDRLTrainer`], in their order. Errors as in [`record_dataset`]."""
    files = _record_files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(GRPOTransform(files, skip_bad, processor))


def check_records(paths: list[str]) -> None:
    """Raises `RecordError` for the first record that cannot be trained on, as far as its text, the existence of its
    files and the heads of its videos show."""
    files, checked = _record_files(paths), {None}
    for number in range(len(files)):
        if (video := files[number].video) not in checked:
            try:
                check_header(video)
            except (ValueError, OSError) as error:
                raise RecordError(f"{files.location(number)}: {error}") from error
            checked.add(video)


def _record_files(paths: list[str]) -> RecordFiles:
    files = RecordFiles(paths)
    if len(files) == 0:
        raise RecordError(f"no records in {', '.join(map(str, files.paths))}")
    return files
