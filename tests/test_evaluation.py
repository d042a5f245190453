"""Intervals against published values, judging, resuming, and the test of the maps on cases with known answers."""

import json

import numpy as np
import pytest
import torch

from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.evaluation import accuracy_table, evaluate, wilson_interval
from fourdthinker_hf.evaluation.maps import _compare
from fourdthinker_hf.evaluation.runner import judge


def test_wilson_interval():
    # 81 of 263: the example of Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def record(**kwargs):
    return Record(id="1", question="?", answer="left", options=["right", "left"], task="way", video="x.mp4", **kwargs)


@pytest.mark.parametrize(
    ("reply", "choice", "correct", "num_images", "well_formed"),
    [
        ("<think>a <output_image> b</think><answer>left</answer>", 1, True, 1, True),
        ("<think>a</think><answer>A</answer>", 0, False, 0, True),
        ("<think>a</think><answer>A. left</answer>", None, False, 0, True),
        ("left", None, False, 0, False),
    ],
)
def test_judge(reply, choice, correct, num_images, well_formed):
    row = judge(record(), reply)
    assert (row["choice"], row["correct"], row["expected"]) == (choice, correct, 1)
    assert (row["num_images"], row["well_formed"]) == (num_images, well_formed)
    assert (row["reason"] is None) == (choice is not None)


def test_table_has_each_task_and_the_pool():
    replies = ["<think>x</think><answer>left</answer>", "<answer>right</answer>"]
    rows = [judge(record(), reply) for reply in replies]
    rows[1]["task"] = "other"
    table = accuracy_table(rows)
    assert [(name, row["correct"], row["num"]) for name, row in table.items()] == [
        ("other", 0, 1), ("way", 1, 1), ("pooled", 1, 2),
    ]  # fmt: skip


def test_a_killed_run_goes_on_and_another_run_is_refused(tiny_folder, clip, tmp_path):
    options = {"options": ["left", "right"], "answer": "left", "task": "way", "video": str(clip)}
    records = tmp_path / "records.jsonl"
    write_records(records, [Record(id=str(i), question=f"way {i}", **options) for i in range(3)])
    out = tmp_path / "out"
    whole = evaluate(str(tiny_folder), str(records), str(out), batch_size=2, max_new_tokens=4)
    path = out / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3 and whole["pooled"]["num"] == 3
    path.write_text(lines[0] + lines[1][:10])  # killed while it wrote the second
    assert evaluate(str(tiny_folder), str(records), str(out), batch_size=2, max_new_tokens=4) == whole
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)
    with pytest.raises(ValueError, match="another run"):
        evaluate(str(tiny_folder), str(records), str(out), video="grey", max_new_tokens=4)
    blind = evaluate(str(tiny_folder), str(records), str(tmp_path / "none"), video="none", max_new_tokens=4)
    assert blind["pooled"]["num"] == 3
    assert json.loads((tmp_path / "none" / "report.json").read_text())["video"] == "none"


def test_maps_that_point_at_the_object_beat_shuffled_ones_and_noise_does_not():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(40):
        features = torch.from_numpy(rng.normal(size=(4, 3, 3, 16))).float()
        step, row, column = rng.integers(4), rng.integers(3), rng.integers(3)
        cover = np.zeros((4, 3, 3), np.float32)
        cover[step, row, column] = 1
        cases.append({"latents": features[step, row, column][None], "features": features, "cover": cover,
                      "step": int(step), "moves": True})  # fmt: skip
    pointed = _compare(cases, None, np.random.default_rng(1))
    assert pointed["best_step"]["own"] == 1.0 and pointed["mass"]["low"] > 0
    assert pointed["area"] == pytest.approx(1 / 36)
    for case in cases:
        case["latents"] = torch.from_numpy(rng.normal(size=(1, 16))).float()
    noise = _compare(cases, None, np.random.default_rng(1))
    assert noise["mass"]["low"] < 0 < noise["mass"]["high"]
