"""train/decoder.py: the decoder learns to draw target frames from their latents, continues to the same bits, and is
found beside the checkpoint."""

import json
import shutil

import decoder
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, TrainingArguments
from trl import ModelConfig, TrlParser

from fourdthinker_hf import VideoQA
from fourdthinker_hf.checkpoints import BUNDLED, load_imagery_decoder
from fourdthinker_hf.evaluation.imagery_pictures import score_drawn, score_pictures
from fourdthinker_hf.imagery_decoder_fourdthinker import FourDThinkerImageryDecoder, FourDThinkerImageryDecoderConfig


@pytest.fixture(scope="module")
def records(tmp_path_factory, clip):
    """Target frames of two colours, one left and one right."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(48):
        left, right = rng.integers(0, 256, (2, 3))
        frame = np.empty((84, 84, 3), np.uint8)
        frame[:, :42], frame[:, 42:] = left, right
        Image.fromarray(frame).save(folder / f"{k}.png")
    clips = [clip, shutil.copy(clip, folder / "other.mp4")]
    rows = [
        {"video": str(clips[k % 2]), "question": "Which?", "answer": "left", "imagery": [f"{k}.png"], "id": str(k)}
        | {"reasoning": "It is <output_image> there."}
        for k in range(48)
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(checkpoint, records, output, *options):
    words = f"--model_name_or_path {checkpoint} --records {records} --feature_cache {records.parent / 'features'} "
    words += f"--eval_records {records} --output_dir {output} --max_steps 60 --save_steps 30 --learning_rate 3e-3 "
    words += "--per_device_train_batch_size 16 --picture_size 14 --hidden_size 32 --num_hidden_layers 1 "
    words += "--report_to none --use_cpu true"
    parser = TrlParser((decoder.ScriptArguments, TrainingArguments, ModelConfig))
    return decoder.main(*parser.parse_args_and_config([*words.split(), *options]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, records):
    """A checkpoint with a decoder, and the decoder's run."""
    folder = tmp_path_factory.mktemp("decoder")
    shutil.copytree(BUNDLED, folder / "model")
    assert train(folder / "model", records, folder / "run") == 0
    return folder / "model", folder / "run"


def test_the_decoder_draws_what_its_latents_show(trained, records, tmp_path):
    scores = score_pictures(str(trained[0]), str(records), str(tmp_path), num=48, source="targets")
    assert scores["num"] == 48 and json.loads((tmp_path / "pictures.json").read_text())["source"] == "targets"
    assert scores["drawn"]["psnr"]["low"] > scores["mean"]["psnr"]["high"]
    assert scores["shuffled"]["psnr"]["high"] < scores["drawn"]["psnr"]["low"]


def test_a_run_continues_to_the_same_bits(trained, records, tmp_path):
    model, run = trained
    shutil.copytree(run / "checkpoint-30", tmp_path / "run" / "checkpoint-30")
    train(model, records, tmp_path / "run")
    first, second = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_bad_record_stops_the_run_or_is_left_out(trained, records, tmp_path):
    bad = records.with_name("bad.jsonl")
    bad.write_text(records.read_text() + '{"id": "x", "video": "none.mp4"}\n')
    with pytest.raises(ValueError, match="bad.jsonl"):
        train(trained[0], bad, tmp_path / "stopped")
    assert train(trained[0], bad, tmp_path / "run", "--skip_bad", "true", "--max_steps", "1") == 3


def test_remote_code_and_video_qa_find_the_decoder(trained, clip):
    model, _ = trained
    remote = AutoModel.from_pretrained(model, subfolder="imagery_decoder", trust_remote_code=True)
    qa = VideoQA.from_pretrained(model)
    latents = torch.randn(2, qa.model.config.latent_size, qa.model.config.text_config.hidden_size)
    assert torch.equal(remote(latents).pictures, qa.imagery_decoder(latents * 8).pictures)
    answer = qa.ask(clip, "In which direction does the red cube move?", ["to the left", "to the right"])
    assert answer.images and all(image.picture.size == (14, 14) for image in answer.images)


def test_a_decoder_for_other_latents_is_refused(model, tmp_path, monkeypatch):
    config = FourDThinkerImageryDecoderConfig(latent_size=9, num_hidden_layers=1)
    FourDThinkerImageryDecoder(config).save_pretrained(tmp_path / "imagery_decoder")
    monkeypatch.setattr(model, "name_or_path", str(tmp_path))
    with pytest.raises(ValueError, match="9 latents of width 192, but .* 4 of width"):
        load_imagery_decoder(model)
    with pytest.raises(ValueError, match="patch_size must divide picture_size"):
        FourDThinkerImageryDecoderConfig(picture_size=50)


def test_who_is_it_counts_the_nearest_of_ten():
    true = np.random.default_rng(0).random((40, 4, 4, 3))
    clips = np.arange(40)
    scores = score_drawn(true, true, true[::-1], clips)
    assert scores["drawn"]["who_is_it"]["rate"] == 1 and scores["drawn"]["psnr"]["mean"] == pytest.approx(100)
    assert scores["last_frame"]["who_is_it"]["rate"] < 0.1 and scores["shuffled"]["who_is_it"]["rate"] == 0
