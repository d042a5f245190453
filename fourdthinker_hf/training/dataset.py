"""Records as a `datasets.Dataset` whose rows are read, and whose videos are decoded, when the dataloader asks for
them."""

import logging
from dataclasses import dataclass

from datasets import Dataset

from ..data.records import RecordError, RecordFiles
from ..processing_fourdthinker import FourDThinkerProcessor
from .collator import DIFTCollator

logger = logging.getLogger(__name__)


@dataclass
class RecordTransform:
    """Transform of a dataset with one column, `index`: it reads the records with these numbers. Subclasses define
    `read`, which makes a row from one number."""

    files: RecordFiles

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [self.read(index) for index in batch["index"]]
        return {name: [row[name] for row in rows] for name in rows[0]}


@dataclass
class DIFTTransform(RecordTransform):
    """Reads a record and opens its video and target frames with `collator`.

    With `skip_bad` the next good record takes the place of a bad one, so batches keep their size. The row's
    `num_skipped` says how many records were skipped.
    """

    collator: DIFTCollator
    skip_bad: bool

    def read(self, index: int) -> dict:
        for num_skipped in range(len(self.files)):
            number = (index + num_skipped) % len(self.files)
            try:
                return {**self.collator.open(vars(self.files[number])), "num_skipped": num_skipped}
            except (ValueError, OSError) as error:
                names_file = isinstance(error, RecordError)
                reason = str(error) if names_file else f"{self.files.location(number)}: {error}"
                if not self.skip_bad:
                    raise RecordError(reason) from error
                logger.warning("A record is skipped and the next one takes its place: %s", reason)
        raise RecordError(f"none of the {len(self.files)} records can be used")


@dataclass
class GRPOTransform(RecordTransform):
    """Reads a record and adds `prompt` (the text of its question, for the logs), `index` and `where` (file and line).
    The video is not opened here: the rollout opens it once for all replies."""

    processor: FourDThinkerProcessor

    def read(self, index: int) -> dict:
        record = self.files[index]
        prompt = self.processor.format_question(record.question, record.options)
        return {**vars(record), "prompt": prompt, "index": index, "where": self.files.location(index)}


def record_dataset(paths: list[str], collator: DIFTCollator, skip_bad: bool = False) -> Dataset:
    """The records of JSONL files for [`DIFTTrainer`], in their order.

    Raises `RecordError` if there are none. Other errors appear when a record is reached: the run then stops with file
    and line or, with `skip_bad`, continues (see [`DIFTTransform`]).
    """
    files = _record_files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(DIFTTransform(files, collator, skip_bad))


def question_dataset(paths: list[str], processor: FourDThinkerProcessor) -> Dataset:
    """The records of JSONL files for [`FourDRLTrainer`], in their order. Errors as in [`record_dataset`]."""
    files = _record_files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(GRPOTransform(files, processor))


def _record_files(paths: list[str]) -> RecordFiles:
    files = RecordFiles(paths)
    if len(files) == 0:
        raise RecordError(f"no records in {', '.join(map(str, files.paths))}")
    return files
