"""The feature store: training on it gives the same losses without the tower, and damaged files are noticed."""

import os
import shutil

import pytest
import torch
from datasets import Dataset
from PIL import Image

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer
from fourdthinker_hf.training.feature_store import CachedCollator, FeatureStore


@pytest.fixture
def records(clip, tmp_path):
    red, grey = tmp_path / "red.png", tmp_path / "grey.png"
    Image.new("RGB", (84, 84), "red").save(red)
    Image.new("L", (112, 84), 90).save(grey)
    frames = [str(red), str(red), str(red)]
    base = {"question": "which way", "options": ["left", "right"], "answer": "left"}
    return [
        Record("1", **base, video=str(clip), reasoning="it <output_image> moves", imagery=[str(red)]),
        Record("2", **base, video=str(clip), reasoning="<output_image> <output_image>", imagery=[str(grey), str(red)]),
        Record("3", **base, frames=frames, timestamps=[0.0, 0.5, 1.0]),
    ]


@pytest.fixture
def store(model, processor, records, tmp_path):
    store = FeatureStore(tmp_path / "features", processor, model)
    assert store.fill(model, processor, records) == 4  # two different clips and two different frames
    return store


class Calls:
    """Counts how often a tower runs."""

    def __init__(self, model):
        self.count = 0
        model.model.visual.register_forward_hook(self.add)

    def add(self, *args):
        self.count += 1


def test_a_batch_is_the_same_except_for_the_pixels(model, processor, records, store):
    rows = [vars(record) for record in records]
    usual, cached = DIFTCollator(processor)(rows), CachedCollator(processor, store=store)(rows)
    gone = {"pixel_values_videos", "pixel_values_latent", "mm_token_type_ids"}
    assert usual.keys() - cached.keys() == gone and cached.keys() - usual.keys() == {"mm_encoder_outputs"}
    for name in cached.keys() & usual.keys():
        assert torch.equal(usual[name], cached[name]), name
    assert cached["second_per_grid_ts"].tolist() == [1.0, 1.0, 1.0]
    usual.pop("num_skipped"), cached.pop("num_skipped")
    with torch.no_grad():
        one, other = model(**usual), model(**cached)
    # The tower ran on batches of other sizes, so sums may be rounded differently.
    torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.latent_targets, other.latent_targets, atol=1e-6, rtol=0)


def test_rows_of_text_alone_share_a_batch_or_fill_it(model, processor, records, store):
    rows, text = [vars(record) for record in records[:2]], {"question": "hello", "answer": "well"}
    for batch in ([rows[0], text, rows[1]], [text, text]):
        usual, cached = DIFTCollator(processor)(batch), CachedCollator(processor, store=store)(batch)
        for name in cached.keys() & usual.keys():
            assert torch.equal(usual[name], cached[name]), name
        assert ("video_grid_thw" in cached) == ("video_grid_thw" in usual) == (batch[0] is rows[0])
        usual.pop("num_skipped"), cached.pop("num_skipped")
        with torch.no_grad():
            one, other = model(**usual), model(**cached)
        torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state, atol=1e-5, rtol=0)


def test_training_on_features_never_runs_the_tower_and_gives_the_same_losses(
    tiny_folder, processor, records, store, tmp_path
):
    losses, calls = [], []
    for collator in (DIFTCollator(processor), CachedCollator(processor, store=store)):
        model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
        counter = Calls(model)
        args = DIFTConfig(
            str(tmp_path / "run"),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=2,
            num_train_epochs=2,
            logging_steps=1,
            learning_rate=1e-3,
            feature_cache=str(tmp_path / "features"),
        )
        rows = [
            {
                "question": r.question,
                "options": r.options,
                "answer": r.answer,
                "reasoning": r.reasoning,
                "imagery": r.imagery,
                "video": r.video,
                "frames": r.frames,
                "timestamps": r.timestamps,
            }
            for r in records
        ]
        trainer = DIFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            data_collator=collator,
        )
        trainer.train()
        losses.append([(row["loss"], row.get("latent_loss")) for row in trainer.state.log_history if "loss" in row])
        calls.append(counter.count)
    assert len(losses[0]) == 4
    for (loss, latent), (cached_loss, cached_latent) in zip(*losses, strict=True):
        assert loss == pytest.approx(cached_loss, abs=1e-6) and latent == pytest.approx(cached_latent, abs=1e-6)
    assert calls[0] >= 4 and calls[1] == 0


def test_stored_features_are_not_computed_again(tiny_folder, model, processor, records, store, tmp_path):
    other = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    calls = Calls(other)
    again = FeatureStore(tmp_path / "features", processor, other)
    assert again.folder == store.folder
    assert again.fill(other, processor, records) == 0 and calls.count == 0
    other_name = tmp_path / "copy.mp4"
    shutil.copyfile(records[0].video, other_name)  # the same content
    assert again.clip(video=str(other_name)).features.shape == (4 * 9, 192)
    Image.new("RGB", (84, 84), "blue").save(records[0].imagery[0])  # another, of the same name
    assert again.fill(other, processor, records) == 2 and calls.count == 2  # the frame, and the clip of such frames


def test_other_weights_settings_or_precision_have_other_folders(tiny_folder, model, processor, store, tmp_path):
    changed = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    with torch.no_grad():
        changed.model.visual.merger.mlp[-1].bias[0] += 1
    denser = type(processor).from_pretrained(tiny_folder, fps=4.0)
    folders = {
        store.folder,
        FeatureStore(tmp_path / "features", processor, changed).folder,
        FeatureStore(tmp_path / "features", denser, model).folder,
        FeatureStore(tmp_path / "features", processor, model, bf16=True).folder,
    }
    assert len(folders) == 4
    reader = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    with torch.no_grad():
        reader.lm_head.weight[0] += 1  # not the tower's
    assert FeatureStore(tmp_path / "features", processor, reader).folder == store.folder


def test_an_error_names_a_missing_or_damaged_file(processor, model, records, store, tmp_path):
    Image.new("RGB", (84, 84), "blue").save(tmp_path / "blue.png")
    with pytest.raises(ValueError, match=r"blue\.png has no features in .*; call fill with its record first"):
        store.frame(tmp_path / "blue.png")
    file = max(store.folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    os.truncate(file, 1000)
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        store.clip(video=records[0].video)
    assert not list(store.folder.rglob("*.tmp"))


def test_without_imagery_target_frames_are_not_encoded(model, processor, records, tmp_path):
    assert FeatureStore(tmp_path, processor, model).fill(model, processor, records, imagery=False) == 2  # the clips


def test_a_bad_file_stops_fill_or_is_skipped(model, processor, records, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    bad = Record("4", question="?", answer="left", video=str(tmp_path / "text.mp4"))
    gone = Record("5", question="?", answer="left", video=str(tmp_path / "gone.mp4"))
    store = FeatureStore(tmp_path / "features", processor, model)
    for record, message in ((bad, "not a video"), (gone, "gone.mp4")):
        with pytest.raises((ValueError, OSError), match=message):
            store.fill(model, processor, [record])
    store.fill(model, processor, [bad, gone, *records], skip_bad=True)
    assert len(list(store.folder.rglob("*.safetensors"))) == 4


def test_a_trained_tower_cannot_be_cached(tmp_path):
    with pytest.raises(ValueError, match="feature_cache needs freeze_vision"):
        DIFTConfig(str(tmp_path), feature_cache=str(tmp_path), freeze_vision=False)
