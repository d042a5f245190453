"""The scores of maps, on cases whose scores are known and on simulated clips."""

import json

import numpy as np
import pytest
import torch

from fourdthinker_hf.checkpoints import BUNDLED, load_model
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.data.simulation.generate_records import clip_from_record, simulate
from fourdthinker_hf.evaluation.imagery_maps import _cases, _score_cases, bootstrap_interval, score_maps


def map_case(rng, number=0):
    """Two mental images a clip, each of one cell of random features."""
    features = torch.from_numpy(rng.normal(size=(4, 3, 3, 16))).float()
    step, row, column = rng.integers(4), rng.integers(3), rng.integers(3)
    mask = np.zeros((4, 3, 3), np.float32)
    mask[step, row, column] = 1
    return {
        "clip": f"clip{number // 2}",
        "latents": features[step, row, column][None],
        "features": features,
        "mask": mask,
        "step": int(step),
        "moves": True,
    }


def test_maps_that_point_at_the_object_beat_shuffled_ones_and_noise_does_not():
    rng = np.random.default_rng(0)
    cases = [map_case(rng, number) for number in range(100)]
    pointed = _score_cases(cases, None, np.random.default_rng(1))
    assert pointed["best_step"]["own"] == pointed["near_step"]["own"] == 1.0 and pointed["mass"]["low"] > 0
    assert pointed["mass"]["chance"] == pytest.approx(1 / 36) and pointed["best_step"]["chance"] == 0.25
    steps = [case["step"] for case in cases]
    assert pointed["near_step"]["chance"] == pytest.approx(np.mean([0.5 if s in (0, 3) else 0.75 for s in steps]))
    for case in cases:
        case["latents"] = torch.from_numpy(rng.normal(size=(1, 16))).float()
    noise = _score_cases(cases, None, np.random.default_rng(1))
    assert all(noise[name]["low"] < 0 < noise[name]["high"] for name in ("mass", "best_step", "near_step"))


@pytest.mark.parametrize(("target", "expected"), [(2, (1, 1)), (1, (0, 1)), (3, (0, 1)), (0, (0, 0))])
def test_near_is_one_step_before_or_after(target, expected):
    """Latents of the cell of step 2, whatever step they should picture; those of what stays in place do not count."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(4, 3, 3, 16))).float()
    case = {"latents": features[2, 1, 1][None], "features": features, "mask": np.ones((4, 3, 3), np.float32)}
    cases = [{**case, "clip": str(i), "step": target, "moves": i < 3} for i in range(4)]
    cases[3]["step"] = 2
    found = _score_cases(cases, None, rng)
    assert (found["best_step"]["own"], found["near_step"]["own"], found["num_moving"]) == (*expected, 3)
    assert found["mass"]["own"] == found["mass"]["shuffled"] == found["mass"]["chance"] == 1
    assert found["near_step"]["gain"] == found["near_step"]["low"] == found["near_step"]["high"] == 0


def test_the_bootstrap_draws_clips_with_all_their_images():
    rng = np.random.default_rng(0)
    values = np.repeat([0.0, 1.0], 50)
    low, high = bootstrap_interval(values, np.repeat(["a", "b"], 50), rng)  # two clips: one, the other, or both
    assert (low, high) == (0, 1)
    low, high = bootstrap_interval(values, np.arange(100), rng)
    assert 0.38 < low < 0.43 < 0.57 < high < 0.62


@pytest.mark.usefixtures("egl")
def test_maps_of_simulated_clips(tmp_path):
    """The whole way, of the model's latents and of the true targets'."""
    benchmark = simulate(4, 5, tmp_path / "data")
    for source in ("model", "targets"):
        result = score_maps(str(BUNDLED), str(benchmark), str(tmp_path / source), 4, source)
        assert result == {
            k: v
            for k, v in json.loads((tmp_path / source / "maps.json").read_text()).items()
            if k not in ("model", "revision", "subfolder", "benchmark")
        }
        assert 4 <= result["num"] <= 6 and result["best_step"]["chance"] == 0.25
        assert 0.02 < result["mass"]["chance"] < 0.1 and result["mass"]["own"] > result["mass"]["chance"]


@pytest.mark.usefixtures("egl")
def test_frames_in_pairs_are_compared_with_the_masks_of_their_own_times(tiny_folder, tmp_path):
    network, processor = load_model(tiny_folder, "cpu", "float32")
    processor.fps, processor.max_frames, processor.pair_seconds = 8.0, 8, 0.25
    (record,) = read_records(simulate(1, 5, tmp_path, tasks=["rel_dis"], workers=1, progress=False))
    case, clip = _cases(network, processor, [record], "targets")[0], clip_from_record(record)
    frames = (np.asarray(processor.open_video(record.video)[1]) * 8).round().astype(int).reshape(4, 2)
    assert frames[-1, 1] >= 30  # four pairs over the whole clip of 32 frames
    number = [thing.name for thing in clip.scene.objects].index(record.source["targets"][0]["object"]) + 1
    shares = (clip.masks[frames] == number).any(1).mean((1, 2))
    assert np.ptp(shares) > 0.002
    np.testing.assert_allclose(case["mask"].mean((1, 2)), shares, atol=1.5e-3)
