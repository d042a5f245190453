"""Finding and loading checkpoints: by folder, by Hub id, with subfolders, as published, and as adapters. The Hub is
the server of local_hub.py."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants, file_download
from qwen_checkpoint import load_whole, write_source
from typer.testing import CliRunner

from fourdthinker_hf import (
    FourDThinkerConfig,
    FourDThinkerForConditionalGeneration,
    FourDThinkerProcessor,
    checkpoints,
)
from fourdthinker_hf.checkpoints import find_model, load_model
from fourdthinker_hf.cli import app
from fourdthinker_hf.data.records import RecordFiles, read_records
from fourdthinker_hf.evaluation.benchmarks import load_benchmark
from fourdthinker_hf.hub.convert import convert
from fourdthinker_hf.qa import VideoQA

# The folders of jankin123/4DThinker-3B, from its card.
PUBLISHED_FOLDERS = ("dift/checkpoints", "4drl")
WEIGHTS = "model.safetensors"


def refused(message: str, *arguments, **kwargs) -> str:
    with pytest.raises(ValueError) as refusal:
        find_model(*arguments, **kwargs)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    return str(refusal.value)


def content(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A checkpoint in the layout of transformers 4.50, in two files. Tests must not write into it."""
    return write_source(tmp_path_factory.mktemp("published") / "4drl", latents=True, old=True, files=2)


@pytest.fixture
def repository(hub, published) -> str:
    """A repository with the folders of the published one."""
    files = {"README.md": b"", "dift/tensorboard/events.out.tfevents.1": b""}
    for folder in PUBLISHED_FOLDERS:
        files |= content(published, f"{folder}/") | {f"{folder}/trainer_state.json": b"{}"}
    hub.add("jankin123/4DThinker-3B", files)
    return "jankin123/4DThinker-3B"


# Where a checkpoint is


def test_a_subfolder_of_a_repository_is_downloaded_alone(repository, published, hub):
    folder = find_model(repository, subfolder="4drl/")
    assert {path.name for path in folder.iterdir()} == {path.name for path in published.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["4drl"]
    assert not hub.count("GET", "dift") and not hub.count("GET", "trainer_state")


def test_without_a_subfolder_the_choices_are_listed(repository, published, tmp_path, hub):
    refused("choose one with subfolder: 4drl, dift/checkpoints", repository)
    refused("no checkpoint in its folder dift, because config.json is missing there", repository, subfolder="dift")
    for folder in PUBLISHED_FOLDERS:
        shutil.copytree(published, tmp_path / "copy" / folder)
    refused("choose one with subfolder: 4drl, dift/checkpoints", tmp_path / "copy")
    assert find_model(tmp_path / "copy", subfolder="dift/checkpoints") == tmp_path / "copy" / "dift/checkpoints"
    refused("it has one in its uppermost folder: leave subfolder out", published, subfolder="4drl")
    assert not hub.count("GET", ".safetensors")


def test_every_failure_of_a_name_has_its_own_words(tiny_folder, hub, tmp_path, monkeypatch):
    files = content(tiny_folder)
    hub.add("me/tiny", files)
    hub.add("other/private", files, private=True)
    hub.add("other/gated", files, gated=True)
    hub.add("me/empty", {"config.json": files["config.json"]})
    hub.add("me/base", {"config.json": b'{"model_type": "qwen2_5_vl"}', WEIGHTS: b""})
    hub.repositories["model", "me/tiny"].tags["v1"] = hub.repositories["model", "me/tiny"].commits[-1][0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    refused(
        "no/thing: there is no such folder, and on the Hub: there is no such repository, or it is private", "no/thing"
    )
    refused("there is no such repository, or it is private: the token in use has no access", "other/private")
    refused("access must be requested on its page; then the token in use has no access", "other/gated")
    refused("it has no revision 'v2'; it has main, v1, and the commits on its page", "me/tiny", "v2")
    refused("a name on the Hub is OWNER/NAME", tmp_path / "runs" / "missing")
    refused("this is a file", "file")
    refused("this is a folder, which has no revision 'v1'", tiny_folder, "v1")
    refused("it has no weights, because there is no model.safetensors", "me/empty")
    refused("me/base: config.json has no latent_token_id", "me/base")
    assert not hub.count("GET", "me/base/resolve/main/model.safetensors")  # the kind is known from config.json
    assert find_model("me/tiny", "v1").parts[-2:] == ("snapshots", hub.repositories["model", "me/tiny"].tags["v1"])
    monkeypatch.setenv("HF_TOKEN", "")
    refused("or it is private: log in (`hf auth login`) or set HF_TOKEN", "other/private")


@pytest.mark.parametrize("read", [load_benchmark, read_records, lambda name: RecordFiles([name])])
def test_a_data_set_on_the_hub_fails_in_the_words_of_a_model(hub, tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    for name, settings in (("me/data", {}), ("other/private", {"private": True}), ("other/gated", {"gated": True})):
        hub.add(name, {"records.jsonl": b""}, "dataset", **settings)

    def refused(name, words):
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            read(name)
        assert str(refusal.value) == f"{name}: there is neither a file nor a folder of this name{words}"

    command = "`hf download me/data --repo-type dataset --local-dir data/data`"
    refused("me/data", f"; the data set on the Hub is downloaded first: {command}")
    no_access = "and on the Hub: there is no such repository, or it is private: the token in use has no access"
    refused("other/private", f", {no_access}")
    refused("no/thing", f", {no_access}")
    gated = "access must be requested on its page; then the token in use has no access"
    refused("other/gated", f", and on the Hub: {gated}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("me/data", ", and on the Hub: the Hub is not asked, because HF_HUB_OFFLINE is set")
    refused(str(tmp_path / "nowhere"), "")


def test_without_a_network_the_cache_is_used_and_otherwise_listed(tiny_folder, hub, cache, monkeypatch):
    hub.add("me/tiny", content(tiny_folder))
    folder = find_model("me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    assert find_model("me/tiny") == folder
    message = refused("the Hub cannot be reached", "me/other")
    assert f"The local cache {cache} has no complete copy of it; it has me/tiny" in message
    assert "has no complete copy of it in revision v9" in refused("cannot be reached", "me/tiny", "v9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("the Hub is not asked, because HF_HUB_OFFLINE is set", "me/other")


def test_a_download_that_does_not_fit_on_the_disk(tiny_folder, hub, cache, monkeypatch):
    hub.add("me/tiny", content(tiny_folder))
    usage = shutil.disk_usage(cache.parent)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        refused("the disk of", "me/tiny")
    assert not hub.count("GET", "/resolve/") and not cache.exists()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "_download_to_tmp_and_move", full)
    refused(f"the disk of {cache} is full; make room, or set HF_HOME to a folder on another disk", "me/tiny")


def test_pointers_of_git_lfs_are_not_weights(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "cloned")
    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n")
    refused(f"{folder / WEIGHTS}: this is a Git LFS pointer and not the file itself; run `git lfs pull`", folder)


# What is loaded


def test_a_published_checkpoint_loads_as_its_conversion(repository, tmp_path, clip, caplog):
    convert(repository, tmp_path / "converted", subfolder="4drl")
    model, processor = load_model(repository, "cpu", subfolder="4drl")
    assert "converted in memory" in caplog.text
    converted, its_processor = load_model(tmp_path / "converted", "cpu")
    assert model.config.latent_early_end and model.dtype == torch.bfloat16
    theirs, ours = converted.config.to_dict(), model.config.to_dict()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"_name_or_path"}
    for name, tensor in converted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    messages = processor.conversation(str(clip), "Where?")
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **arguments)
    expected = its_processor.apply_chat_template(messages, **arguments)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 8]]  # four seconds, a frame a second


def test_the_classes_refuse_a_published_checkpoint_and_name_the_command(published):
    """transformers would only log a warning, and take the settings of mental images and of videos from defaults."""
    command = f"`fourdthinker convert {published} DEST` makes it of a published 4DThinker"
    for kind, words in (
        (FourDThinkerConfig, "config.json has model_type 'qwen2_5_vl'"),
        (FourDThinkerForConditionalGeneration, "config.json has model_type 'qwen2_5_vl'"),
        (FourDThinkerProcessor, "there is no processor_config.json with a latent_size"),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            kind.from_pretrained(published)
        assert command in str(refusal.value)


def test_ask_takes_the_published_repository_by_name(repository, clip):
    arguments = ["ask", str(clip), "Where?", "--model", repository, "--max-new-tokens", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--subfolder", "dift/checkpoints"])
    assert result.exit_code == 0 and "Note: the reply was cut before an answer" in result.stdout, result.output
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "choose one with subfolder: 4drl, dift/checkpoints" in result.stderr


def test_a_clip_gets_the_tokens_of_the_published_training(published, tmp_path, write_video):
    """A frame a second, with at most 256 patches of 28 x 28 pixels: 13 x 18 of them."""
    path = write_video(tmp_path / "clip.mp4", np.zeros((32, 480, 640, 3), np.uint8))
    qa = VideoQA.from_pretrained(published, device="cpu")
    assert qa.open(path).video_grid_thw.tolist() == [[2, 26, 36]]


def test_what_cannot_be_loaded_as_asked(tiny_folder, published):
    for settings, words in (
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"dtype": "float8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'float8'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_model("no/thing", **settings)  # before the Hub is asked
    model, _ = load_model(published, "cpu", "float32")
    assert model.dtype == torch.float32


# Adapters


@pytest.fixture(scope="session")
def adapter(tiny_folder, tmp_path_factory) -> Path:
    """A LoRA adapter of the tiny checkpoint whose weights are not zero. Tests must not write into it."""
    from peft import LoraConfig, get_peft_model

    from fourdthinker_hf.training.lora import LORA_TARGETS, latent_rows

    model, _ = load_model(tiny_folder, "cpu")
    rows = latent_rows(model.config)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LORA_TARGETS, trainable_token_indices=rows))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_loads_with_its_base(adapter, tiny_folder, hub, tmp_path):
    model, processor = load_model(adapter, "cpu")
    base, _ = load_model(tiny_folder, "cpu")
    before, after = base.state_dict(), model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    layers = [name for name in after if "language_model.layers" in name and name.endswith("_proj.weight")]
    assert changed == {*layers, "model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert processor.latent_size == 4

    files = content(adapter)
    settings = json.loads(files["adapter_config.json"])
    hub.add(
        "me/adapter",
        files | {"adapter_config.json": json.dumps(settings | {"base_model_name_or_path": "me/tiny"}).encode()},
    )
    with pytest.raises(ValueError, match="this is an adapter, whose base model cannot be found: me/tiny: there is no"):
        load_model("me/adapter", "cpu")
    hub.add("me/tiny", content(tiny_folder))
    loaded, _ = load_model("me/adapter", "cpu")
    assert all(torch.equal(tensor, after[name]) for name, tensor in loaded.state_dict().items())


def test_the_hash_of_an_adapter_is_of_it_and_of_its_base(adapter, tiny_folder, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "adapter")
    hashes = {checkpoints.model_hash(folder) for folder in (adapter, tiny_folder)}
    assert len(hashes) == 2 and checkpoints.model_hash(other) in hashes
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "generation_config.json").write_text("{}")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    assert checkpoints.model_hash(other) not in hashes


def test_adapters_that_do_not_fit(adapter, published, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((other / "adapter_config.json").read_text())

    def load(base: str | None) -> str:
        (other / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError) as refusal:
            load_model(other, "cpu")
        return str(refusal.value)

    assert "it names no base model" in load(None)
    assert "this is an adapter, whose base model cannot be found" in load(str(tmp_path / "gone" / "away"))
    assert "this is an adapter of the adapter" in load(str(adapter))
    assert "the adapter does not fit its base model" in load(str(published))
    (other / "adapter_model.safetensors").unlink()
    refused("there is no adapter_model.safetensors beside adapter_config.json", other)


def test_merge_writes_what_loads_with_the_base(adapter, tiny_folder, tmp_path):
    result = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "merged")])
    assert result.exit_code == 0 and result.stdout.endswith(f"merged into {tiny_folder}, float32\n"), result.output
    expected, _ = load_model(adapter, "cpu")
    merged = load_whole(tmp_path / "merged")
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert load_model(tmp_path / "merged", "cpu")[1].latent_size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    for arguments, words in (
        ((adapter, tmp_path / "merged"), "merged: exists already"),
        ((tiny_folder, tmp_path / "other"), "this is no adapter"),
    ):
        result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
        assert result.exit_code == 2 and words in result.stderr


def test_the_mean_of_the_latents_goes_with_an_adapter(adapter, tiny_folder, tmp_path):
    """Training writes it to a config.json beside the adapter."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    model, _ = load_model(tiny_folder, "cpu")
    assert model.config.latent_mean is None
    model.config.latent_mean = [0.5] * model.config.text_config.hidden_size
    model.config.save_pretrained(folder)
    loaded, _ = load_model(folder, "cpu")
    assert loaded.config.latent_mean == model.config.latent_mean
