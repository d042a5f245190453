"""The table of accuracies."""

import pytest

from fourdthinker_hf.evaluation import accuracy_table
from fourdthinker_hf.evaluation.report import format_table


def test_table_has_each_task_both_means_and_chance():
    row = {"task": "way", "correct": True, "choice_correct": True, "num_options": 2, "num_images": 0}
    row["well_formed"] = True
    table = accuracy_table([row, row, row | {"task": "other", "correct": False, "num_options": 4}])
    assert (table["pooled"]["correct"], table["pooled"]["choice_correct"]) == (2, 3)
    assert (macro := table["macro"])["choice_accuracy"] == 1 and macro["choice_low"] > macro["low"]
    assert [(name, row["correct"], row["num"]) for name, row in table.items()] == [
        ("other", 0, 1),
        ("way", 2, 2),
        ("macro", 2, 3),
        ("pooled", 2, 3),
    ]
    macro, pooled = table["macro"], table["pooled"]
    assert (macro["accuracy"], pooled["accuracy"]) == (0.5, pytest.approx(2 / 3))
    assert (macro["chance"], pooled["chance"]) == (pytest.approx(0.375), pytest.approx(1.25 / 3))
    # Half of each joined distance: from 1 down to the low end of "way", from 0 up to the high end of "other".
    assert (macro["low"], macro["high"]) == (
        pytest.approx(0.5 - (1 - table["way"]["low"]) / 2),
        pytest.approx(0.5 + table["other"]["high"] / 2),
    )
    assert "| way | 2 | 2 | 100.0% | 34.2% to 100.0% | 100.0% | 34.2% to 100.0% | 50.0% |" in format_table(table)
    assert [line.split(" | ")[0] for line in format_table(table).splitlines()[2:]] == [
        "| other",
        "| way",
        "| macro (mean of tasks)",
        "| micro (pooled)",
    ]
