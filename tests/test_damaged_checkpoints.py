"""A damaged or hostile checkpoint is one message at every door, and no code that lies beside it runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fourdthinker_hf.checkpoints import load_model
from fourdthinker_hf.cli import app
from fourdthinker_hf.hub.publish import make_plan

ROOT = Path(__file__).resolve().parents[1]
CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass T: pass\n"
MANY = "a token has the id 1000000000, but the model has tokens 0 to "


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def edit(name, **values):
    """A function that changes these keys of a JSON file; those of `text_config` there."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        content["text_config"] = content.get("text_config", {}) | values.pop("text", {})
        (folder / name).write_text(json.dumps(content | values))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:2000])


def index(text):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def give_a_token_the_id_1e9(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["id"] = 10**9
    (folder / "tokenizer.json").write_text(json.dumps(content))


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def need_code(folder):
    (folder / "own.py").write_text(CODE)
    edit("tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["own.T", None]})(folder)


DAMAGES = {
    "weights cut": (cut("model.safetensors"), "model.safetensors: truncated or damaged"),
    "weights pickled": (pickle, "pickled weights are not read"),
    "a tensor missing": (drop_a_tensor, "1 missing, such as "),
    "index without a map": (index("{}"), "index.json: it has no weight_map"),
    "index that leads out": (index('{"weight_map": {"a": "../x.safetensors"}}'), "it names ../x.safetensors"),
    "config that is a list": (write("config.json", b"[1]"), "config.json: this is no JSON object but '[1]'"),
    "config that is deep": (write("config.json", b"[" * 100_000), "config.json: this is not JSON"),
    "latent id": (edit("config.json", latent_token_id=10**9), f"config.json: {MANY}"),
    "layers": (edit("config.json", text={"num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000, so the file"),
    "width": (edit("config.json", text={"intermediate_size": 64}), "of a wrong shape, such as model.language_model"),
    "heads": (edit("config.json", text={"num_attention_heads": 0}), "config.json: it cannot be loaded: ZeroDivision"),
    "end token": (edit("generation_config.json", eos_token_id="x"), "generation_config.json: a token has the id 'x'"),
    "token id": (give_a_token_the_id_1e9, f"tokenizer.json: {MANY}"),
    "tokenizer cut": (cut("tokenizer.json"), "tokenizer.json: this is not JSON"),
    "template that raises": (write("chat_template.jinja", b"{{ raise_exception('no') }}"), "TemplateError: no"),
    "template cut": (write("chat_template.jinja", b"{% for"), "TemplateSyntaxError"),
    "frames a second": (edit("processor_config.json", fps=0), "fps 0 and max_frames 8 must be above 0"),
    "own code": (need_code, "it needs code that lies beside it (auto_map), which is not run"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_it_is_one_message(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError) as refusal:
        load_model(folder, "cpu")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["token id", "template that raises", "own code"])
def test_the_command_line_ends_with_status_2(folder, clip, tmp_path, name):
    damage, message = DAMAGES[name]
    damage(folder)
    records = tmp_path / "records.jsonl"
    row = {"id": "1", "video": str(clip), "question": "?", "options": ["a", "b"], "answer": "a"}
    records.write_text(json.dumps(row) + "\n")
    for arguments in (
        ["ask", clip, "Where?", "--model", folder],
        ["evaluate", "--benchmark", records, "--out", tmp_path / "out", "--model", folder],
        ["filter", records, "--out", tmp_path / "kept.jsonl", "--model", folder],
    ):
        result = CliRunner().invoke(app, list(map(str, arguments)), input="y\n")
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "ran").exists()


def test_the_demo_ends_with_status_2(folder):
    cut("model.safetensors")(folder)
    done = subprocess.run(
        [sys.executable, ROOT / "app.py", "--model", folder], capture_output=True, text=True, cwd=ROOT, input="y\n"
    )
    assert done.returncode == 2 and "truncated or damaged" in done.stderr and "Traceback" not in done.stderr


def test_publishing_runs_no_other_code_than_this_project_s(folder):
    with (folder / "modeling_fourdthinker.py").open("a") as file:
        file.write(CODE)
    with pytest.raises(ValueError, match="modeling_fourdthinker.py: this is not this project's file"):
        make_plan(folder)
    assert not (folder / "ran").exists()
