"""Paired statistics are checked against published numbers and against direct formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourdthinker_hf.evaluation.statistics import compare, mcnemar, paired_interval, wilson_interval

counts = st.integers(0, 40)


def rows(*correct, predictions=None):
    predictions = predictions or ["a" if right else "b" for right in correct]
    return [
        {"id": str(i), "correct": right, "prediction": said}
        for i, (right, said) in enumerate(zip(correct, predictions, strict=True))
    ]


def test_wilson_interval():
    # 81 of 263: the example of Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(10, 3) == mcnemar(3, 10) == pytest.approx(2 * sum(math.comb(13, k) for k in range(4)) / 2**13)


def test_newcombes_example():
    """Newcombe 1998 (Stat Med 17: 2635), table II, example: 36, 12, 2, 0 of 50 gives 0.2 (0.0569, 0.3404)."""
    low, high = paired_interval(36, 2, 12, 0)
    assert (low, high) == (pytest.approx(0.0569, abs=5e-4), pytest.approx(0.3404, abs=5e-4))


@given(counts, counts, counts, counts)
def test_the_interval_holds_the_difference_and_changes_sign_with_the_order_of_the_runs(both, lost, won, neither):
    total = both + lost + won + neither
    if total == 0:
        return
    low, high = paired_interval(both, lost, won, neither)
    assert -1 <= low <= (won - lost) / total <= high <= 1
    assert (-high, -low) == pytest.approx(paired_interval(both, won, lost, neither))


def test_compare_counts_what_changed():
    first = rows(True, True, True, False, False, predictions=["a", "a", "a", "b", "c"])
    second = rows(True, False, False, True, False, predictions=["a", "b", None, "a", "b"])
    found = compare(first, reversed(second))
    assert (found["num"], found["first"], found["second"]) == (5, 0.6, 0.4)
    assert found["difference"] == pytest.approx(-0.2) and found["changed"] == 0.8 and found["p"] == 1.0


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="but 1 questions are in one"):
        compare(rows(True, False), rows(True))
