"""Records as a `datasets.Dataset` whose rows are read, and their frames decoded, when the loader asks for them."""

import logging
from dataclasses import dataclass

from datasets import Dataset

from ..data.records import RecordError, RecordFiles
from ..processing_fourdthinker import FourDThinkerProcessor
from .collator import DIFTCollator

logger = logging.getLogger(__name__)


@dataclass
class Rows:
    """Rows of record files by their numbers, as `datasets` asks for them."""

    files: RecordFiles

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [self.row(index) for index in batch["index"]]
        return {name: [row[name] for row in rows] for name in rows[0]}


@dataclass
class OpenRow(Rows):
    """Row `i` of record files, opened. With `skip_bad` the next good record stands in for a bad one, so that batches
    keep their size; the row's `num_skipped` says how many were passed over."""

    collator: DIFTCollator
    skip_bad: bool

    def row(self, index: int) -> dict:
        for num_skipped in range(len(self.files)):
            place = (index + num_skipped) % len(self.files)
            try:
                return {**self.collator.open(vars(self.files[place])), "num_skipped": num_skipped}
            except (ValueError, OSError) as error:
                is_named = isinstance(error, RecordError)
                reason = str(error) if is_named else f"{self.files.where(place)}: {error}"
                if not self.skip_bad:
                    raise RecordError(reason) from error
                logger.warning("skipped, the next record is taken instead: %s", reason)
        raise RecordError(f"none of the {len(self.files)} records can be used")


def record_dataset(paths: list[str], collator: DIFTCollator, skip_bad: bool = False) -> Dataset:
    """Rows of JSONL files for [`DIFTTrainer`], in their order. `RecordError` if there are none; what is wrong with one
    shows when it is reached: then the run stops with file and line or, with `skip_bad`, goes on (see [`OpenRow`])."""
    files = _files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(OpenRow(files, collator, skip_bad))


@dataclass
class ReadRow(Rows):
    """Row `i` of record files as [`FourDRLTrainer`] takes it: a record's columns, `prompt` (its text, for logs),
    `index` and `where` (file and line). Its video is not opened: a rollout does that, once for all replies."""

    processor: FourDThinkerProcessor

    def row(self, index: int) -> dict:
        record = self.files[index]
        prompt = self.processor.format_question(record.question, record.options)
        return {**vars(record), "prompt": prompt, "index": index, "where": self.files.where(index)}


def question_dataset(paths: list[str], processor: FourDThinkerProcessor) -> Dataset:
    """Rows of JSONL files for [`FourDRLTrainer`], in their order. Errors as in [`record_dataset`]."""
    files = _files(paths)
    return Dataset.from_dict({"index": range(len(files))}).with_transform(ReadRow(files, processor))


def _files(paths: list[str]) -> RecordFiles:
    files = RecordFiles(paths)
    if len(files) == 0:
        raise RecordError(f"no records in {', '.join(map(str, files.paths))}")
    return files
