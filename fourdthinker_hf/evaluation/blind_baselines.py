"""Baselines that answer questions from their text alone: what they get right beyond chance, the wording gives away.

Each baseline returns the index of the option that it chooses for each record. The records must have four options.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from ..data.records import Record


def right_options(records: Sequence[Record]) -> list[int]:
    """Index of the right option of each record."""
    return [record.options.index(record.answer) for record in records]


def majority_letter(records: Sequence[Record]) -> list[int]:
    """Choose the letter that is right most often in these very records: no single letter can do better."""
    return [Counter(right_options(records)).most_common(1)[0][0]] * len(records)


def longest_option(records: Sequence[Record]) -> list[int]:
    return [int(np.argmax(list(map(len, record.options)))) for record in records]


def most_shared_words(records: Sequence[Record]) -> list[int]:
    """Choose the option whose words occur most often in the options."""

    def score(option: str, options: list[str]) -> float:
        words = option.split()
        return sum(word in other.split() for word in words for other in options) / len(words)

    return [int(np.argmax([score(option, record.options) for option in record.options])) for record in records]


def text_classifier(records: Sequence[Record], training: Sequence[Record], epochs: int = 60) -> list[int]:
    """Choose by logistic regression over the four options, trained on the records `training`.

    The features are the words of an option, the option beside each other one, and its words beside those of the
    question. Where answers and letters are balanced over a set of records, do not train on a part of the set to answer
    the rest: what is too frequent in one part is too rare in the other, which takes a classifier below chance.
    """
    ids: dict[str, int] = {}
    bags_of = [
        [[ids.setdefault(name, len(ids)) for name in _features(record, k)] for record in some for k in range(4)]
        for some in (training, records)
    ]
    weights = torch.nn.EmbeddingBag(len(ids), 1, mode="sum")
    torch.nn.init.zeros_(weights.weight)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=0.02, weight_decay=0.1)

    def scores(bags: list[list[int]]) -> torch.Tensor:
        starts = torch.tensor([0, *map(len, bags[:-1])]).cumsum(0)
        return weights(torch.tensor([name for bag in bags for name in bag]), starts).view(-1, 4)

    right = torch.tensor(right_options(training))
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores(bags_of[0]), right).backward()
        optimizer.step()
    return scores(bags_of[1]).argmax(-1).tolist()


def _features(record: Record, k: int) -> list[str]:
    """Names of the features of option `k`."""
    option, words = record.options[k], record.options[k].replace(",", "").split()
    question_words = set(record.question.replace(",", "").replace("?", "").split())
    alone = [f"place {k}", f"text {option}", *words, f"length {len(words)}"]
    beside_others = [f"{option} beside {other}" for other in record.options if other != option]
    return (
        alone + beside_others + [f"{word} when asked {asked}" for word in {*words, option} for asked in question_words]
    )
