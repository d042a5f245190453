"""How the next tiny model is made: its processor, the labels of its vision tower, and its text."""

import json
from pathlib import Path

import make
import numpy as np
import pytest
import torch
import yaml
from init_model import make_tokenizer
from init_motion_model import make_config, make_processor
from pretrain_motion_tower import HEADS, PATCH, Pairs, to_features, to_patches, vision_config

from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.training import check_records

TOKENIZER = make_tokenizer(["red ball 3 4, 5 4."], 300)


def test_patches_are_those_of_the_processor():
    frames = np.random.default_rng(0).integers(0, 256, (2, 112, 140, 3), dtype=np.uint8)
    processor = make_processor(TOKENIZER)
    made = processor.video_processor(frames, do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt")
    patches, grid = to_patches(torch.from_numpy(frames)[None])
    assert grid.tolist() == made["video_grid_thw"].tolist() == [[1, 8, 10]]
    torch.testing.assert_close(patches, made["pixel_values_videos"], atol=2e-2, rtol=0)


def test_labels_stand_in_the_order_of_the_patches():
    rows, columns = 6, 8
    labels = torch.arange(rows * columns, dtype=torch.float32).view(1, rows, columns)
    frames = (
        labels.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None, :, :, None].expand(1, 2, -1, -1, 3)
    )
    patches, _ = to_patches(frames)
    assert to_features(labels).flatten().argsort().tolist() == patches.mean(1).argsort().tolist()


def test_a_batch_of_pairs_depends_on_its_number_alone():
    pytest.importorskip("cv2")
    one, other = (Pairs(3, 0, 10, 2, []).prepared().batch(4) for _ in range(2))
    assert set(one) == {"frames", *HEADS} and all(torch.equal(one[name], other[name]) for name in one)
    rows, columns = (side // PATCH for side in one["frames"].shape[2:4])
    assert one["flow"].shape == (2, rows, columns, 2) and one["colour"].shape == (2, rows, columns)


def test_the_tower_has_no_windows():
    config = vision_config()
    assert config.fullatt_block_indexes == list(range(config.depth))


def test_the_processor_samples_pairs_and_the_configuration_follows_the_tower():
    processor, config = make_processor(TOKENIZER), make_config(TOKENIZER)
    assert (processor.pair_seconds, processor.max_frames) == (0.2, 16)
    assert config.latent_size == processor.latent_size == 16
    assert len(config.text_config.layer_types) == config.text_config.num_hidden_layers == 6
    assert config.vision_config.out_hidden_size == config.text_config.hidden_size


def test_the_recipes_take_the_steps_of_scale_one():
    recipes = Path(__file__).resolve().parents[2] / "train/recipes/tiny"
    for name in ("words", "text_only", "dift"):
        assert yaml.safe_load((recipes / f"layered_{name}.yaml").read_text())["max_steps"] == make.STEPS[name]


def test_varied_records_keep_the_answer_and_words_records_have_neither_clip_nor_images(tmp_path, clip, monkeypatch):
    image = tmp_path / "image.png"
    make.Image.new("RGB", (112, 112)).save(image)
    record = Record("a", "How does the camera move?", "It pans left", ["It pans left", "It tilts up"], "camera_motion")
    record.reasoning, record.imagery, record.video = "At first <output_image>. So it pans.", [str(image)], str(clip)
    write_records(tmp_path / "records.jsonl", [record])
    monkeypatch.chdir(tmp_path.parent)
    paths = make.write_varied(Path(tmp_path.name, "records.jsonl"))
    check_records(paths)
    seen, unseen = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
    assert [row["id"] for row in seen] == ["a", "a-odd0"] and len(unseen) == 1 + make.ODD_COPIES
    assert [row["question"] for row in unseen[:2]] == [row["question"] for row in seen]
    for row in (*seen, *unseen):
        assert row["options"].index(row["answer"]) == 0 and "It pans left" in row["answer"]
        assert row["answer"].replace("pans left", "tilts up") == row["options"][1]
    assert {row["question"] for row in seen[:1]} == {record.question} != {row["question"] for row in seen[1:]}
    assert all(row["reasoning"] == "At first. So it pans." and not row["imagery"] for row in unseen)
