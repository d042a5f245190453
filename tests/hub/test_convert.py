"""`convert` makes a folder that loads whole from a base and from a published checkpoint, and refuses all else."""

import base64
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_checkpoint import EMBED, HIDDEN, LATENTS, PIXELS, all_tensors, load_whole, small_tokenizer, write_source
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.convert_slow_tokenizer import TikTokenConverter
from typer.testing import CliRunner

import fourdthinker_hf
from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.cli import app
from fourdthinker_hf.hub import convert as convert_module
from fourdthinker_hf.hub.convert import convert


@pytest.fixture
def base(tmp_path) -> Path:
    return write_source(tmp_path / "base")


@pytest.fixture
def published(tmp_path) -> Path:
    return write_source(tmp_path / "published", latents=True, old=True, files=3)


BASES = {
    "tied": {},
    "tied old padded": {"old": True, "padding": 9},
    "tied files with the same head": {"files": 4, "head": "same"},
    "tied with another head": {"head": "other"},
    "untied files": {"tied": False, "files": 3},
    "untied old padded files": {"tied": False, "old": True, "files": 2, "padding": 9},
    "untied one row of padding": {"tied": False, "padding": 1},
}


@pytest.mark.parametrize("case", BASES.values(), ids=BASES)
def test_a_base_gets_three_tokens_and_nothing_else_changes(case, tmp_path):
    source, dest = write_source(tmp_path / "base", **case), tmp_path / "dest"
    num_trained = len(AutoTokenizer.from_pretrained(source))
    line = convert(source, dest)
    ids = [num_trained, num_trained + 1, num_trained + 2]
    assert f"Qwen2.5-VL base, latent tokens {ids[0]}, {ids[1]}, {ids[2]}, 3 new rows" in line

    before, after = all_tensors(source), all_tensors(dest)
    assert before.keys() == after.keys()
    tables = [name for name in after if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert len(tables) == (1 if case.get("tied", True) and "head" not in case else 2)
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        if name not in tables:
            assert torch.equal(tensor, before[name])
    for name in tables:
        old, new = before[name], after[name]
        assert new.shape == (max(len(old), num_trained + 3), HIDDEN)
        kept = torch.arange(len(new)) < len(old)
        kept[ids] = False
        assert torch.equal(new[kept], old[: len(new)][kept[: len(old)]])
        trained = old[:num_trained].float()
        noise = (new[ids].float() - trained.mean(0)) / trained.std(0)
        assert 0.007 < noise.square().mean().sqrt() < 0.015 and noise.abs().max() < 0.05
        assert all(not torch.equal(new[a], new[b]) for a, b in ((ids[0], ids[1]), (ids[0], ids[2]), (ids[1], ids[2])))

    model, plain = load_whole(dest, dtype="auto"), Qwen2_5_VLForConditionalGeneration.from_pretrained(source)
    config = model.config
    assert model.dtype == torch.bfloat16 and config.tie_word_embeddings == case.get("tied", True)
    assert [config.latent_token_id, config.latent_start_id, config.latent_end_id] == ids
    assert config.text_config.vocab_size == len(model.get_input_embeddings().weight) == max(len(old), num_trained + 3)
    assert config.get_text_config().vocab_size == model.lm_head.weight.shape[0]
    assert (config.latent_size, config.latent_early_end, config.compress_strategy) == (4, False, "average")
    assert model.generation_config.temperature == 0.5
    text = torch.arange(num_trained)[None, ::7]
    with torch.no_grad():
        logits = model.float()(text).logits[..., :num_trained]
        torch.testing.assert_close(logits, plain.eval().float()(text).logits[..., :num_trained], rtol=0, atol=2e-5)
    if "files" in case:
        index = json.loads((dest / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {
            "total_size": sum(tensor.nbytes for tensor in after.values()),
            "total_parameters": sum(tensor.numel() for tensor in after.values()),
        }
        assert index["weight_map"].keys() == after.keys()


def test_a_head_stored_beside_a_tied_table_stays_tied_only_if_it_was(tmp_path):
    for head in ("same", "other"):
        convert(write_source(tmp_path / head, head=head), tmp_path / f"{head} converted")
        model = load_whole(tmp_path / f"{head} converted")
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == (head == "same")


def test_tokens_of_a_base_come_in_the_published_order_and_are_special(base, tmp_path):
    convert(base, tmp_path / "dest")
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "dest")
    assert after.convert_tokens_to_ids(LATENTS) == [len(before), len(before) + 1, len(before) + 2]
    assert len(after) == len(before) + 3
    ids = after("to the left" + "".join(LATENTS) + "to the right")["input_ids"]
    assert after.decode(ids, skip_special_tokens=True) == "to the leftto the right"
    assert {k: v for k, v in after.get_vocab().items() if k not in LATENTS} == before.get_vocab()


def test_options_of_a_base(base, tmp_path):
    (tmp_path / "instruction.txt").write_text("\nThink first.\n\n")
    convert(base, tmp_path / "dest", tmp_path / "instruction.txt", latent_size=6, compress_strategy="grid")
    config = load_whole(tmp_path / "dest").config
    processor = FourDThinkerProcessor.from_pretrained(tmp_path / "dest")
    assert (config.latent_size, config.compress_strategy, processor.latent_size) == (6, "grid", 6)
    assert processor.format_question("Where?") == "Where?\nThink first."
    assert (processor.fps, processor.max_frames, processor.second_per_grid) == (2.0, 64, None)
    for part in (processor.image_processor, processor.video_processor):
        assert (part.size.shortest_edge, part.size.longest_edge) == (PIXELS["min_pixels"], PIXELS["max_pixels"])


def test_a_published_checkpoint_is_copied_with_its_training_time_settings(published, tmp_path, clip):
    (tmp_path / "instruction.txt").write_text("Picture it, then answer in <answer>.\n")
    dest = tmp_path / "new" / "dest"
    line = convert(published, dest, tmp_path / "instruction.txt")
    assert "published" in line and "0 new rows" in line and "with an instruction" in line
    for path in published.glob("*.safetensors"):
        assert (dest / path.name).read_bytes() == path.read_bytes()
    raw = json.loads((dest / "config.json").read_text())
    assert (raw["model_type"], raw["dtype"]) == ("fourdthinker", "bfloat16")
    assert raw["architectures"] == ["FourDThinkerForConditionalGeneration"]
    assert not {"stage", "ce_loss_weight", "sim_loss_weight"} & raw.keys()
    model = load_whole(dest)
    config = model.config
    assert (config.latent_size, config.compress_strategy, config.latent_early_end) == (4, "average", True)
    assert config.text_config.rope_parameters["mrope_section"] == [2, 1, 1]

    processor = FourDThinkerProcessor.from_pretrained(dest)
    assert processor.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(published).get_vocab()
    assert (processor.fps, processor.max_frames, processor.second_per_grid) == (1.0, 50, 1.0)
    assert processor.format_question("Where?", ["here", "there"]).endswith("\nPicture it, then answer in <answer>.")
    for part in (processor.image_processor, processor.video_processor):
        assert (part.size.shortest_edge, part.size.longest_edge, part.resample) == (784, 200704, 1)
    inputs = processor.apply_chat_template(
        processor.conversation(str(clip), "Where?"), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 8]]  # four seconds, a frame a second
    large = processor.image_processor(np.zeros((720, 1280, 3), np.uint8), return_tensors="pt")
    assert large["image_grid_thw"].tolist() == [[1, 24, 42]]  # 336 x 588 pixels, 252 patches of 28 x 28


def test_a_published_checkpoint_of_transformers_4_57(tmp_path):
    """That version writes the text settings twice, flat and nested. latent_size may be missing."""
    source = write_source(tmp_path / "source", latents=True)
    raw = json.loads((source / "config.json").read_text())
    del raw["latent_size"]
    (source / "config.json").write_text(json.dumps(raw["text_config"] | raw))
    convert(source, tmp_path / "dest")
    assert load_whole(tmp_path / "dest").config.latent_size == 8
    assert FourDThinkerProcessor.from_pretrained(tmp_path / "dest").latent_size == 8
    assert "vocab_size" not in json.loads((tmp_path / "dest" / "config.json").read_text())


def test_the_folder_has_the_usual_permissions_and_the_code_of_the_package(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dest").mkdir()
    convert("base", "dest")
    assert (tmp_path / "dest").stat().st_mode == base.stat().st_mode
    package = Path(fourdthinker_hf.__file__).parent
    code = {path.name: path.read_bytes() for path in package.glob("*_fourdthinker.py") if "decoder" not in path.name}
    assert {path.name: path.read_bytes() for path in Path("dest").glob("*.py")} == code
    assert {path.name for path in tmp_path.iterdir()} == {"base", "dest"}


PROGRAM = """
import sys
try:
    import fourdthinker_hf
except ImportError:
    pass
else:
    raise SystemExit("the package is importable here")
import torch
from transformers import AutoModel, AutoProcessor

folder, clip, out = sys.argv[1:]
model, info = AutoModel.from_pretrained(folder, output_loading_info=True, trust_remote_code=True)
assert not any(info.values()), info
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
messages = processor.conversation(clip, "Where? <output_image>")
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
latents = torch.ones(*inputs["input_ids"].shape, model.config.text_config.hidden_size, dtype=model.dtype)
with torch.no_grad():
    torch.save(model.eval()(**inputs, latent_embeds=latents).logits, out)
"""


def test_it_loads_where_this_package_is_not_installed(base, tmp_path, clip):
    convert(base, tmp_path / "dest")
    (tmp_path / "fourdthinker_hf.py").write_text("raise ImportError('not installed here')\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "program.py", "dest", str(clip), "logits.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=env | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    model, processor = load_whole(tmp_path / "dest"), FourDThinkerProcessor.from_pretrained(tmp_path / "dest")
    messages = processor.conversation(str(clip), "Where? <output_image>")
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    pads = inputs["input_ids"] == model.config.latent_token_id
    assert pads.sum() == 4
    with torch.no_grad():
        logits = model(**inputs, latent_embeds=torch.ones(*pads.shape, HIDDEN, dtype=model.dtype)).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)


def edit(name: str, **settings):
    def damage(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        kept = {key: value for key, value in (raw | settings).items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


def remove(*names: str):
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut(name: str, keep: float):
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def retensor(change, name="model-00001-of-00003.safetensors"):
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return damage


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


SHARD = "model-00002-of-00003.safetensors"
REFUSALS = {
    "no config": (remove("config.json"), ["config.json is missing"]),
    "broken config": (cut("config.json", 0.5), ["config.json", "not JSON"]),
    "another model": (edit("config.json", model_type="qwen2_vl"), ["config.json", "'qwen2_vl'", "'qwen2_5_vl'"]),
    "another head": (edit("config.json", architectures=["Qwen2_5_VLModel"]), ["config.json", "Qwen2_5_VLModel"]),
    "ours already": (edit("config.json", model_type="fourdthinker"), ["already", "nothing to convert"]),
    "pickles": (only_pickles, ["model.safetensors", "pickled"]),
    "missing file": (remove(SHARD), ["model.safetensors.index.json", SHARD, "not there"]),
    "truncated file": (cut(SHARD, 0.9), [SHARD, "truncated"]),
    "truncated header": (cut(SHARD, 0.001), [SHARD, "truncated"]),
    "empty file": (cut(SHARD, 0), [SHARD, "truncated"]),
    "broken index": (cut("model.safetensors.index.json", 0.5), ["model.safetensors.index.json", "not JSON"]),
    "missing tensor": (retensor(lambda tensors: dict(list(tensors.items())[1:])), ["1 missing"]),
    "unexpected tensor": (
        retensor(lambda tensors: tensors | {"visual.more": torch.zeros(2)}),
        ["1 unexpected", "model.visual.more"],
    ),
    "wrong shape": (
        retensor(lambda tensors: {name: tensor[None] for name, tensor in tensors.items()}),
        ["of a wrong shape"],
    ),
    "other vocabulary size": (edit("config.json", vocab_size=999), ["1 of a wrong shape", EMBED]),
    "other layers": (edit("config.json", num_hidden_layers=3), ["12 missing", "model.language_model.layers.2."]),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ["there is no tokenizer_config.json"]),
    "another tokenizer": (
        lambda folder: small_tokenizer(False).save_pretrained(folder),
        ["latent_token_id 8", "<|latent_pad|> at None"],
    ),
    "half a tokenizer": (remove("tokenizer.json"), ["tokenizer", "copy both from its base"]),
    "no processor": (remove("preprocessor_config.json"), ["processor", "copy both from its base"]),
    "no chat template": (remove("chat_template.json"), ["chat_template.json"]),
    "other latent ids": (edit("config.json", latent_start_id=151666), ["latent_start_id 151666", "at 9"]),
    "ids nowhere said": (edit("config.json", latent_token_id=None), ["names none", "latent_token_id"]),
}


@pytest.mark.parametrize(("damage", "words"), REFUSALS.values(), ids=REFUSALS)
def test_a_wrong_source_is_refused_and_nothing_is_left(damage, words, published, tmp_path):
    damage(published)
    with pytest.raises(ValueError) as refusal:
        convert(published, tmp_path / "dest")
    assert str(published) in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_wrong_arguments_are_refused(published, tmp_path):
    full, file = tmp_path / "full", tmp_path / "file.txt"
    full.mkdir()
    (full / "mine").touch()
    file.write_bytes(b"\xff\xfe\xff")
    for arguments, words in (
        ((published, full), "full: exists already"),
        ((published, file), "file.txt: exists already"),
        ((published, tmp_path / "dest", file), "file.txt: this is not UTF-8"),
        ((published, tmp_path / "dest", None, 4), "its own latent_size"),
        ((published, tmp_path / "dest", None, None, "grid"), "its own compress_strategy"),
        ((tmp_path / "nowhere", tmp_path / "dest"), "nowhere: there is no such folder"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(*arguments)
    with pytest.raises(OSError, match="absent.txt"):
        convert(published, tmp_path / "dest", tmp_path / "absent.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "full", "published"]
    assert [path.name for path in full.iterdir()] == ["mine"]


@pytest.mark.parametrize("place", ["save_file", "custom_object_save"])
def test_after_a_failure_half_way_nothing_is_left(place, base, tmp_path, monkeypatch):
    def full_disk(tensors, path, metadata=None):
        Path(path, "half" if Path(path).is_dir() else "").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(convert_module, place, full_disk)
    (tmp_path / "dest").mkdir()
    with pytest.raises(OSError, match="No space left"):
        convert(base, tmp_path / "dest")
    assert sorted(path.name for path in tmp_path.rglob("*") if base not in path.parents) == ["base", "dest"]


def test_the_command(base, published, tmp_path):
    (tmp_path / "instruction.txt").write_text("Think.")

    def run(*arguments):
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    made = run(base, tmp_path / "one", "--latent-size", 2, "--compress-strategy", "grid")
    assert (made.exit_code, made.stdout.count("\n")) == (0, 1) and "base, latent tokens" in made.stdout
    config = load_whole(tmp_path / "one").config
    assert (config.latent_size, config.compress_strategy) == (2, "grid")
    made = run(published, tmp_path / "two", "--instruction", tmp_path / "instruction.txt")
    assert made.exit_code == 0 and "with an instruction" in made.stdout
    assert FourDThinkerProcessor.from_pretrained(tmp_path / "two").instruction == "Think."
    again = run(base, tmp_path / "one")
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.count("\n") == 1 and "one: exists already" in again.stderr


QWEN_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()


def test_the_real_vocabulary(tmp_path, monkeypatch):
    """Runs only after `pip install --no-deps --target FOLDER dashscope`, with FOLDER on PYTHONPATH."""
    if (package := find_spec("dashscope")) is None:
        pytest.skip("dashscope, which ships the Qwen vocabulary, is not installed")
    ranks = Path(package.origin).parent / "resources" / "qwen.tiktoken"
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    read = staticmethod(lambda path: {base64.b64decode(token): int(rank) for token, rank in lines})
    monkeypatch.setattr(TikTokenConverter, "load_tiktoken_bpe", read)  # the original imports tiktoken
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(ranks)
    added = {str(151643 + i): {"content": token, "special": True} for i, token in enumerate(QWEN_TOKENS)}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "qwen" / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges))
    (tmp_path / "qwen" / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "qwen")
    assert tokenizer.convert_tokens_to_ids(QWEN_TOKENS) == list(range(151643, 151665))
    source = write_source(tmp_path / "base", tokenizer=tokenizer, padding=151936 - 151665, tied=False, old=True)
    convert(source, tmp_path / "dest")
    model, processor = load_whole(tmp_path / "dest"), FourDThinkerProcessor.from_pretrained(tmp_path / "dest")
    assert processor.tokenizer.convert_tokens_to_ids(LATENTS) == [151665, 151666, 151667]
    config = model.config
    assert (config.latent_token_id, config.latent_start_id, config.latent_end_id) == (151665, 151666, 151667)
    assert config.text_config.vocab_size == len(model.lm_head.weight) == len(model.get_input_embeddings().weight)
    assert config.text_config.vocab_size == 151936
    text = "The red ball is 7.4 m away — 球往左边走了。\n"
    assert processor.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
