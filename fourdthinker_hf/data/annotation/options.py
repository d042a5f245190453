"""Gives annotated questions their options, balanced over the whole data set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..records import Record
from ..vocabulary import with_distractors
from .questions import ANSWERS, TASKS

OFTEN = 1.5


def add_options(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """The records, each with its options, less those whose answer their task has too many of.

    As in the simulated benchmark nothing in a question's text should tell its answer: each letter is right equally
    often; distractors are drawn evenly from the answers that the data set has of the task (where it has less than
    four, from all); and no answer is kept more often than `OFTEN` times the mean of its task. Which are left out
    depends on `seed` and the records' ids, not on their order.
    """
    by_task = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.id):
        by_task[record.task][record.answer].append(record)
    kept = []
    for task, answers in sorted(by_task.items()):
        rng = np.random.default_rng([seed, TASKS.index(task)])
        most = _most([len(group) for group in answers.values()])
        known = list(answers) if len(answers) >= 4 else ANSWERS[task]
        for _, group in sorted(answers.items()):
            letters = int(rng.integers(4))
            for k, number in enumerate(sorted(rng.permutation(len(group))[:most].tolist())):
                record = group[number]
                options = with_distractors(rng, record.answer, known, (letters + k) % 4)
                kept.append(replace(record, options=options))
    order = {record.id: number for number, record in enumerate(records)}
    return sorted(kept, key=lambda record: order[record.id])


def _most(counts: Sequence[int]) -> int:
    """The largest number of records of an answer that is at most `OFTEN` times the mean of those then kept."""
    return next(m for m in range(max(counts), 0, -1) if m <= max(1, OFTEN * np.mean(np.minimum(counts, m))))
