"""Gives annotated questions their options, balanced over the whole data set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..question_vocabulary import with_distractors
from ..records import Record
from .questions import ANSWERS, TASKS

MAX_ANSWER_RATIO = 1.5  # how often an answer may be kept, relative to the mean over the answers of its task


def add_options(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Give each record its options, and leave out records whose answer is too frequent in their task.

    The text of a question should tell nothing about its answer. Therefore each letter is right equally often, the
    wrong options are drawn evenly from the answers that the data set has for the task (from all possible ones if it
    has fewer than four), and no answer is kept more often than `MAX_ANSWER_RATIO` allows. Which records are left out
    depends on `seed` and on the ids of the records, not on their order.
    """
    by_task = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.id):
        by_task[record.task][record.answer].append(record)
    kept = []
    for task, answers in sorted(by_task.items()):
        rng = np.random.default_rng([seed, TASKS.index(task)])
        counts = [len(group) for group in answers.values()]
        # Of two answers a guesser names the more frequent one, so they are kept equally often.
        max_kept = _max_kept(counts) if len(ANSWERS[task]) > 2 else max(1, min(counts) if len(counts) > 1 else 0)
        pool = list(answers) if len(answers) >= 4 else ANSWERS[task]
        for _, group in sorted(answers.items()):
            first_position = int(rng.integers(4))
            for k, index in enumerate(sorted(rng.permutation(len(group))[:max_kept].tolist())):
                record = group[index]
                options = with_distractors(rng, record.answer, pool, (first_position + k) % min(4, len(pool)))
                kept.append(replace(record, options=options))
    order = {record.id: index for index, record in enumerate(records)}
    return sorted(kept, key=lambda record: order[record.id])


def _max_kept(counts: Sequence[int]) -> int:
    """How many records of each answer to keep at most, given how many there are of each.

    It is the largest number that is at most `MAX_ANSWER_RATIO` times the mean number then kept, but 1 or more.
    """
    return next(
        most
        for most in range(max(counts), 0, -1)
        if most <= max(1, MAX_ANSWER_RATIO * np.mean(np.minimum(counts, most)))
    )
