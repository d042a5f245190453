"""Intervals of accuracies, and the paired comparison of two runs of the same questions."""

import math
from collections.abc import Iterable


def mcnemar(lost: int, won: int) -> float:
    """The two-sided p value of McNemar's exact test (McNemar 1947, in its binomial form). `lost` and `won` count the
    questions that only the first and only the second run answers right."""
    total = lost + won
    tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1)) / 2**total
    return min(1.0, 2 * tail)


def paired_interval(both: int, lost: int, won: int, neither: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of the difference of two paired proportions, second minus first (Newcombe 1998, method 10).

    `both` and `neither` count the questions that both or neither run answers right, `lost` those that only the first
    does, `won` those that only the second does. `z` = 1.96 gives 95%.
    """
    total = both + lost + won + neither
    first, second = (both + lost) / total, (both + won) / total
    (low_1, high_1), (low_2, high_2) = (wilson_interval(both + count, total, z) for count in (lost, won))
    product = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    excess = both * neither - lost * won
    if excess > 0:
        excess = max(excess - total / 2, 0)  # the correction of method 10
    phi = excess / math.sqrt(product) if product else 0.0

    def half_width(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = second - first
    low = difference - half_width(second - low_2, high_1 - first)
    return max(low, -1.0), min(difference + half_width(high_2 - second, first - low_1), 1.0)


def compare(first: Iterable[dict], second: Iterable[dict]) -> dict:
    """Compares the rows of two runs of the same questions.

    Returns `num`, the accuracies `first` and `second`, their `difference` (second minus first) with its 95% interval
    `low` and `high`, the `p` of McNemar's test, and `changed`, the share of questions with another prediction. Raises
    `ValueError` unless both runs have the same questions.
    """
    before, after = ({row["id"]: row for row in rows} for rows in (first, second))
    if before.keys() != after.keys() or not before:
        missing = len(before.keys() ^ after.keys())
        raise ValueError(
            f"Only runs of the same questions can be compared, but {missing} questions are in one of the two runs only"
        )
    outcomes = [(before[key]["correct"], after[key]["correct"]) for key in before]
    both, lost, won, neither = (outcomes.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    total = len(outcomes)
    low, high = paired_interval(both, lost, won, neither)
    changed = sum(before[key]["prediction"] != after[key]["prediction"] for key in before)
    return {
        "num": total,
        "first": (both + lost) / total,
        "second": (both + won) / total,
        "difference": (won - lost) / total,
        "low": low,
        "high": high,
        "p": mcnemar(lost, won),
        "changed": changed / total,
    }


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); `z` = 1.96 gives 95%. `ValueError` if `total` is 0."""
    if total < 1:
        raise ValueError("An interval needs at least one answer")
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
