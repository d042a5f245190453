"""Cards and publishing. The Hub is replaced by a server on this machine with its HTTP API, tests/local_hub.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpo
import pytest
import sft
import torch
import yaml
from huggingface_hub import ModelCard, constants
from local_hub import LocalHub
from packaging.requirements import Requirement
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trl import ModelConfig
from trl.trainer.utils import generate_model_card
from typer.testing import CliRunner

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.checkpoints import BUNDLED, find_model
from fourdthinker_hf.cli import app
from fourdthinker_hf.data.simulation.generate_records import simulate
from fourdthinker_hf.evaluation.imagery_maps import score_maps
from fourdthinker_hf.evaluation.report import format_table
from fourdthinker_hf.evaluation.runner import evaluate
from fourdthinker_hf.hub import card
from fourdthinker_hf.hub.card import FROM_SCRATCH, NEEDED, lineage, make_card, save_figures, update_card
from fourdthinker_hf.hub.publish import SPACE_TEXT, SPACE_TITLE, Plan, make_plan, publish_run, upload
from fourdthinker_hf.training import DIFTConfig, FourDRLConfig

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"
CODE = [
    "configuration_fourdthinker.py",
    "modeling_fourdthinker.py",
    "processing_fourdthinker.py",
    "video_fourdthinker.py",
]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    for word in words:
        assert word in result.stderr


def run_without_package(
    program: str, folder: Path, hub: LocalHub | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Run `program` in `folder` with a cache of its own, in a process that cannot import this package."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    kept |= {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", **env}
    kept |= {"HF_ENDPOINT": hub.url} if hub else {"HF_HUB_OFFLINE": "1"}
    program = f"import sys\nsys.modules['fourdthinker_hf'] = None\n{program}"
    return subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, env=kept, capture_output=True, text=True, timeout=300
    )


def snippet(text: str, number: int = 0) -> str:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


@pytest.fixture(scope="module")
def split(tmp_path_factory, egl) -> Path:
    """Four simulated questions. Tests must not write to the folder."""
    folder = tmp_path_factory.mktemp("data") / "split"
    simulate(4, 3, folder, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, tiny_folder, split) -> Path:
    """Runs of the tiny checkpoint on them: plain, zeros, maps. Tests must not write to the folder."""
    folder = tmp_path_factory.mktemp("outputs")
    for probe in ("plain", "zeros"):
        evaluate(str(tiny_folder), str(split), str(folder / probe), probe=probe, max_new_tokens=3)
    score_maps(str(tiny_folder), str(split / "records.jsonl"), str(folder / "maps"), 4, "targets")
    return folder


@pytest.fixture
def checkpoint(tmp_path, tiny_folder) -> Path:
    """A checkpoint with a card that can be published."""
    folder = shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    make_card(folder, license="apache-2.0", from_scratch=True, training="On nothing.")
    return folder


@pytest.fixture
def evaluated(checkpoint, outputs) -> Path:
    save_figures(checkpoint, [outputs / "plain", outputs / "zeros"], [outputs / "maps" / "maps.json"])
    update_card(checkpoint)
    return checkpoint


# Cards


def test_cards_that_a_library_generated_are_replaced(checkpoint):
    trl = generate_model_card(
        base_model="me/base", model_name="x", hub_model_id="me/x", dataset_name=None, tags=["trl"], wandb_url=None,
        trainer_name="SFT", comet_url=None, trackio_url=None,
    )  # fmt: skip
    network = FourDThinkerForConditionalGeneration.from_pretrained(checkpoint)
    get_peft_model(network, LoraConfig(target_modules=["q_proj"])).save_pretrained(checkpoint / "adapter")
    for text in (str(trl), (checkpoint / "adapter" / "README.md").read_text()):
        (checkpoint / "README.md").write_text(text)
        done = run("card", checkpoint, "--license", "apache-2.0", "--from-scratch")
        assert done.exit_code == 0, done.output
        assert card.BEGIN in (checkpoint / "README.md").read_text() and not card.is_generated(checkpoint)
    (checkpoint / "README.md").write_text("---\ntags: [mine]\n---\nMy own words.")
    refused(run("card", checkpoint), "it has no place for the figures")


def test_a_card_is_rendered_from_the_evaluation_files(evaluated, outputs):
    found = ModelCard.load(evaluated / "README.md")
    table = json.loads((outputs / "plain" / "report.json").read_text())["table"]
    assert format_table(table) in found.text
    assert "Simulated questions, level 1, seed 3" in found.text
    assert re.search(r"\| `zeros` \| the content of the latents: zeros are fed \| [\d.]+% \|", found.text)
    score = json.loads((outputs / "maps" / "maps.json").read_text())["mass"]
    assert f"| {score['own']:.3f} | {score['shuffled']:.3f} | {score['chance']:.3f} |" in found.text

    data = found.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("video-text-to-text", "transformers")
    assert (data["license"], "base_model" in data) == ("apache-2.0", False)
    assert {"custom_code", FROM_SCRATCH} <= set(data["tags"])
    (index,) = data["model-index"]
    values = {row["dataset"]["config"]: row["metrics"][0]["value"] for row in index["results"]}
    assert values == {task: round(row["accuracy"], 4) for task, row in table.items() if task != "macro"}
    kept = (evaluated / "evaluation").iterdir()
    assert not any(str(outputs.parent) in path.read_text() for path in kept)  # no paths of this machine


def test_the_card_of_a_model_with_a_base_names_it(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    made = run("card", folder, "--base-model", "Qwen/base", "--license", "mit", "--trained-on", "me/split")
    assert made.stdout == f"{folder / 'README.md'}\n"
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/base", "finetune")
    assert (data["license"], data["datasets"], "model-index" in data) == ("mit", ["me/split"], False)
    assert FROM_SCRATCH not in data["tags"] and "It was not evaluated." in text and NEEDED in text
    assert lineage(folder) == {"base_model": "Qwen/base", "license": "mit", "from_scratch": False}
    refused(run("card", folder, "--base-model", "Qwen/base", "--from-scratch"), "only one of the two")


def test_figures_are_updated_and_other_text_stays(checkpoint, outputs):
    path = checkpoint / "README.md"
    path.write_text(path.read_text().replace("On nothing.", "On something: ours."))
    arguments = ["--run", outputs / "plain", "--run", outputs / "zeros", "--maps", outputs / "maps" / "maps.json"]
    assert run("card", checkpoint, *arguments).exit_code == 0
    first = path.read_text()
    assert "On something: ours." in first and "`zeros`" in first and "It was not evaluated." not in first
    assert card.check_card(checkpoint) == []
    assert run("card", checkpoint).exit_code == 0 and path.read_text() == first
    path.write_text(first.replace(card.BEGIN, ""))
    refused(run("card", checkpoint), "no place for the figures", card.BEGIN)


def test_runs_of_other_weights_or_questions_are_refused(checkpoint, outputs, split, tmp_path):
    refused(run("card", checkpoint, "--run", outputs / "zeros"), "zeros", "plain run")
    other = shutil.copytree(outputs / "plain", tmp_path / "plain")
    report = json.loads((other / "report.json").read_text())
    report["settings"]["questions_sha256"] = "0"
    (other / "report.json").write_text(json.dumps(report))
    refused(run("card", checkpoint, "--run", other), "holds other questions now")
    tensors = load_file(checkpoint / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, checkpoint / WEIGHTS, {"format": "pt"})
    refused(run("card", checkpoint, "--run", outputs / "plain"), "other weights")
    refused(run("card", checkpoint, "--maps", outputs / "maps" / "maps.json"), "other weights")
    assert not (checkpoint / "evaluation").exists()


def test_figures_of_replaced_weights_are_deleted(evaluated, split, tmp_path):
    other_weights(evaluated)
    assert any("other weights" in problem for problem in card.check_card(evaluated))
    evaluate(str(evaluated), str(split), str(tmp_path / "plain"), max_new_tokens=3)
    assert run("card", evaluated, "--run", tmp_path / "plain").exit_code == 0
    assert card.check_card(evaluated) == []
    assert [path.name for path in (evaluated / "evaluation").iterdir()] == [
        "simulated-questions-level-1-seed-3.plain.json"
    ]


def test_registered_benchmarks_get_a_file_of_their_own(checkpoint, outputs):
    arguments = ["card", checkpoint, "--run", outputs / "plain", "--registered"]
    refused(run(*arguments, "me/bench"), "OWNER/DATASET:TASK")
    assert run(*arguments, "me/bench:all").exit_code == 0
    (path,) = (checkpoint / ".eval_results").iterdir()
    (entry,) = yaml.safe_load(path.read_text())
    accuracy = json.loads((outputs / "plain" / "report.json").read_text())["table"]["pooled"]["accuracy"]
    assert entry["dataset"] == {"id": "me/bench", "task_id": "all"}
    assert entry["value"] == pytest.approx(100 * accuracy, abs=0.01)
    assert card.check_card(checkpoint) == []
    path.write_text(path.read_text().replace("value: ", "value: 9"))
    refused(run("publish", checkpoint, "me/tiny"), "README.md's figures are not those")


def test_the_bundled_checkpoint_has_a_card_that_holds():
    assert card.check_card(BUNDLED) == []
    text = (BUNDLED / "README.md").read_text()
    for part in ("## Use", "## Training data and recipe", "## Evaluation", "## Limits", "## Licence", "## Citation"):
        assert part in text


# What may not be published


def edit(name: str, change):
    def damage(folder: Path) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return damage


def in_card(old: str, new: str):
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit("README.md", change)


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight" if "lm_head.weight" in tensors else next(iter(tensors))] += 1
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


TOKEN = "hf_" + 34 * "x"  # it has the form of a token
REFUSALS = {
    "no card": (lambda folder: (folder / "README.md").unlink(), ["no README.md", "fourdthinker card"]),
    "no metadata": (edit("README.md", lambda text: text.split("---")[2]), ["no licence", "no base model"]),
    "no licence": (in_card("license: apache-2.0\n", ""), ["no licence", "--license"]),
    "no base": (in_card(f"- {FROM_SCRATCH}\n", ""), ["no base model", "--from-scratch"]),
    "broken metadata": (in_card("tags:", "tags: ["), ["metadata cannot be read"]),
    "not ready": (in_card("On nothing.", NEEDED), ["README.md, line 1", NEEDED]),
    "another figure": (in_card("| 25.0% |", "| 24.0% |"), ["figures", "anew"]),
    "another index": (in_card("      value: 0", "      value: 1"), ["figures", "anew"]),
    "no index": (edit("README.md", lambda text: re.sub("model-index:.*?---", "---", text, flags=re.S)), ["figures"]),
    "other weights": (other_weights, ["measured on other weights"]),
    "pickles": (only_pickles, ["pickled"]),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), ["no model.safetensors"]),
    "truncated": (lambda folder: os.truncate(folder / WEIGHTS, 5000), ["truncated"]),
    "another model": (edit("config.json", lambda text: text.replace('"fourdthinker"', '"qwen2_5_vl"')), ["convert"]),
    "no code": (lambda folder: (folder / CODE[1]).unlink(), [CODE[1], "not there"]),
    "token in the card": (edit("README.md", lambda text: text + TOKEN), ["README.md, line", "Hugging Face"]),
    "token in code": (edit(CODE[3], lambda text: f"# {'AKIA' + 16 * 'B'}\n{text}"), [f"{CODE[3]}, line 1", "AWS"]),
    "key in the config": (
        edit("config.json", lambda text: text.replace("{", '{"key": "-----BEGIN RSA PRIVATE KEY-----",', 1)),
        ["config.json, line 1", "a private key"],
    ),
    "another's token": (edit("chat_template.jinja", lambda text: f"{text}\nghp_{36 * 'a'}"), ["_template", "GitHub"]),
    "a paid key": (edit("generation_config.json", lambda text: f"{text}\nsk-proj-{40 * 'b'}"), ["line", "OpenAI"]),
}


@pytest.mark.parametrize(("damage", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_must_not_be_published_is_refused(damage, words, evaluated, hub):
    damage(evaluated)
    result = run("publish", evaluated, "me/tiny")
    refused(result, str(evaluated), *words)
    assert TOKEN not in result.stderr
    assert hub.log == []


def test_all_problems_are_named_at_once(checkpoint):
    (checkpoint / "README.md").write_text(f"---\ntags: [custom_code]\n---\n{TOKEN} {NEEDED}")
    refused(run("publish", checkpoint, "me/tiny"), "no licence", "no base model", NEEDED, "Hugging Face token")


def test_code_that_needs_this_package_is_refused(checkpoint):
    edit(CODE[2], lambda text: text + "\nfrom fourdthinker_hf import qa\n")(checkpoint)
    result = run("publish", checkpoint, "me/tiny", "--dry-run", "--trust-remote-code")
    refused(result, "fails where", "import of fourdthinker_hf")


def test_weights_that_the_config_does_not_describe_are_refused(checkpoint):
    tensors = load_file(checkpoint / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / WEIGHTS, {"format": "pt"})
    refused(run("publish", checkpoint, "me/tiny"), "weights and config differ", "norm.weight")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/", "me/ti ny"])
def test_a_name_that_the_hub_would_not_take_is_refused(name, checkpoint):
    refused(run("publish", checkpoint, name), name)


def test_files_of_the_trainer_are_not_uploaded_and_the_plan_says_why(evaluated, hub):
    (evaluated / "checkpoint-10").mkdir()
    (evaluated / "runs").mkdir()
    for name in (
        "checkpoint-10/optimizer.pt",
        "checkpoint-10/model.safetensors",
        "trainer_state.json",
        "notes.txt",
        "training_args.bin",
        "pytorch_model.bin",
        "helper.py",
        "adapter_model.safetensors",
        "runs/events",
        "evaluation/draft.md",
    ):
        (evaluated / name).write_text("{}")
    result = run("publish", evaluated, "me/tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    start = "not uploaded: "
    excluded = dict(line.removeprefix(start).split(", ", 1) for line in lines if line.startswith(start))
    assert excluded == {
        "checkpoint-10/ (2 files)": "a trainer's checkpoint",
        "runs/ (1 files)": "logs",
        "trainer_state.json": "the trainer's state",
        "training_args.bin": "the trainer's state",
        "pytorch_model.bin": "a pickle, which can run code when it is loaded",
        "notes.txt": "not needed to use it",
        "helper.py": "code that config.json does not name",
        "evaluation/draft.md": "not needed to use it",
        "adapter_model.safetensors": "weights that the index does not name",
    }
    uploaded = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {WEIGHTS, "config.json", "tokenizer.json", "README.md", *CODE} <= set(uploaded)
    assert not {name.split(" ")[0] for name in excluded} & set(uploaded)
    assert head.startswith(f"me/tiny (model): {len(uploaded)} files")
    assert hub.log == []


# To the local server and back


README = (ROOT / "README.md").read_text()
LOADED = """
import torch
from transformers import AutoModel
model, info = AutoModel.from_pretrained("me/tiny", trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
torch.save(model.state_dict(), "loaded.pt")
"""


def test_push_then_load_by_name_where_this_package_is_not(hub, tmp_path, clip):
    """This shows that the files arrive whole and are enough to load the model; the server is not the Hub itself."""
    result = run("publish", BUNDLED, "me/tiny")
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == f"{hub.url}/me/tiny", result.output
    files = hub.repositories["model", "me/tiny"].files
    assert hub.count("PUT", "/objects/") == 1 and hub.count("POST", "/commit/") == 1
    assert files[WEIGHTS] == (BUNDLED / WEIGHTS).read_bytes()
    text = files["README.md"].decode()
    assert "OWNER/NAME" not in text and 'from_pretrained("me/tiny"' in text

    shutil.copy(clip, tmp_path / "clip.mp4")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    ours = snippet(README, 1)
    assert ours.count('"checkpoints/4dthinker-tiny"') == 2
    program = LOADED + snippet(text) + ours.replace("checkpoints/4dthinker-tiny", "me/tiny")
    done = run_without_package(program, tmp_path, hub)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("<output_image>" in line for line in lines) == 2 and sum("torch.Size" in line for line in lines) == 2
    theirs = torch.load(tmp_path / "loaded.pt")
    for name, tensor in FourDThinkerForConditionalGeneration.from_pretrained(BUNDLED).state_dict().items():
        assert torch.equal(theirs[name], tensor)

    assert upload(weights_plan(BUNDLED), "me/tiny") == f"{hub.url}/me/tiny"  # the second time there is nothing to send
    assert hub.count("PUT", "/objects/") == 1 and hub.count("POST", "/commit/") == 1


def weights_plan(folder: Path) -> Plan:
    return Plan("model", {path.name: path for path in folder.glob("*.safetensors*")}, {})


def shard(folder: Path) -> list[str]:
    """Split the weights into several files. Returns their names."""
    model = FourDThinkerForConditionalGeneration.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_old_weights_are_deleted(checkpoint, hub):
    upload(weights_plan(checkpoint), "me/tiny")
    shards = shard(checkpoint)
    upload(weights_plan(checkpoint), "me/tiny")
    files = hub.repositories["model", "me/tiny"].files
    assert len(shards) > 1 and set(files) == {*shards, "model.safetensors.index.json"}


UPLOAD = """
import sys
from pathlib import Path
from fourdthinker_hf.hub.publish import Plan, upload
files = {path.name: path for path in Path(sys.argv[1]).glob("*.safetensors*")}
upload(Plan("model", files, {}), "me/tiny")
"""


def test_an_upload_that_was_killed_continues(checkpoint, hub, tmp_path):
    """Whole files that have arrived are not sent again. The local server has no Xet."""
    num = len(shard(checkpoint))
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    hub.hold()
    with subprocess.Popen([sys.executable, "-c", UPLOAD, str(checkpoint)], env=env, cwd=ROOT) as process:
        while process.poll() is None and not (hub.held.is_set() and len(hub.stored) == num - 1):
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert hub.repositories["model", "me/tiny"].files == {} and len(hub.stored) == num - 1
    assert upload(weights_plan(checkpoint), "me/tiny") == f"{hub.url}/me/tiny"
    files = hub.repositories["model", "me/tiny"].files
    for path in checkpoint.glob("*.safetensors*"):
        assert files[path.name] == path.read_bytes()
    assert hub.count("PUT", "/objects/") == num  # each was sent once


def test_a_private_repository_with_and_without_a_token(checkpoint, hub, tmp_path, clip, monkeypatch):
    files = {path.name: path for path in checkpoint.iterdir() if path.is_file()}
    upload(Plan("model", files, {}), "me/hidden", private=True)
    assert hub.repositories["model", "me/hidden"].private
    program = "from transformers import AutoConfig; AutoConfig.from_pretrained('me/hidden', trust_remote_code=True)"
    done = run_without_package(program, tmp_path, hub, HF_TOKEN="hf_local")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    for token, words in (
        ("hf_other", "there is no such repository, or it is private: the token in use has no access"),
        ("hf_none", "the token is not valid"),
        ("", "there is no such repository, or it is private: log in"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ValueError, match=f"me/hidden: there is no such folder, and on the Hub: {words}"):
            find_model("me/hidden")
    for arguments in (("convert", "me/hidden", tmp_path / "dest"), ("ask", clip, "Where?", "--model", "me/hidden")):
        refused(run(*arguments), "me/hidden", "`hf auth login`", "HF_TOKEN")
    with pytest.raises(ValueError, match="me/hidden: its card .* log in"):
        lineage("me/hidden")


def test_who_may_write(checkpoint, hub, monkeypatch):
    plan = weights_plan(checkpoint)
    upload(plan, "me/tiny")
    for token, name, words in (
        ("hf_other", "me/tiny", "may not write"),
        ("hf_other", "me/new", "may not write"),
        ("hf_bad", "me/tiny", "not valid"),
    ):
        with pytest.raises(ValueError, match=words):
            upload(plan, name, token=token)
    with pytest.raises(ValueError, match="exists and is public"):
        upload(plan, "me/tiny", private=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises(ValueError, match="there is no token: log in"):
        upload(plan, "me/tiny")


def test_a_hub_that_cannot_be_reached(checkpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="cannot be reached"):
        upload(weights_plan(checkpoint), "me/tiny", token="hf_local")


def test_a_run_of_a_launcher_is_published_with_a_card(tiny_folder, checkpoint, hub, tmp_path):
    trained = shutil.copytree(tiny_folder, tmp_path / "trained")
    (trained / "README.md").write_text("---\nlibrary_name: transformers\n---\nWhat a trainer writes.")
    (trained / "training_args.bin").write_bytes(b"x")
    parent = lineage(checkpoint)
    assert publish_run(trained, "me/trained", parent, training="One step.") == f"{hub.url}/me/trained"
    files = hub.repositories["model", "me/trained"].files
    text = files["README.md"].decode()
    assert "One step." in text and FROM_SCRATCH in text and "What a trainer writes." not in text
    assert "training_args.bin" not in files
    in_card("license: apache-2.0\n", "")(checkpoint)
    with pytest.raises(ValueError, match="names no licence"):
        lineage(checkpoint)
    with pytest.raises(ValueError, match="no card"):
        lineage(tiny_folder)


def launch(*arguments, **env: str) -> subprocess.CompletedProcess:
    """`accelerate launch` in two processes on the CPU."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        2,
        "--main_process_port",
        0,
        *arguments,
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_XET": "1", **env}
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "stage", "more"),
    [
        ("sft", "DIFT", {"per_device_train_batch_size": 1}),
        ("grpo", "4DRL", {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 8}),
    ],
)
def test_a_run_that_is_pushed_comes_back_by_name(checkpoint, split, hub, tmp_path, program, stage, more):
    """Two steps of a launcher in two processes, published once, and loaded where this package is not."""
    run, env = tmp_path / "run", {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_local", "HF_HOME": str(tmp_path / "home")}
    settings = {
        "model_name_or_path": checkpoint,
        "records": split / "records.jsonl",
        "output_dir": run,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.5,
        "use_cpu": True,
        "bf16": False,
        "save_steps": 1,
        "gradient_checkpointing": False,
        "report_to": "none",
        "push_to_hub": True,
        "hub_private_repo": True,
        "hub_model_id": "me/trained",
        **more,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    done = launch(f"train/{program}.py", *flags, **env)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count(f"{hub.url}/me/trained") == 1 and hub.count("POST", "/commit/") == 1
    assert "not uploaded: checkpoint-2/" in done.stderr and "a trainer's checkpoint" in done.stderr
    sent = hub.repositories["model", "me/trained"]
    assert sent.private and not any("checkpoint-" in name or name.endswith(".bin") for name in sent.files)
    assert f"{stage} (`train/{program}.py`) on split." in sent.files["README.md"].decode()
    home = tmp_path / "elsewhere"
    home.mkdir()
    done = run_without_package(LOADED.replace("me/tiny", "me/trained"), home, hub, HF_TOKEN="hf_local")
    assert done.returncode == 0, done.stderr
    theirs = torch.load(home / "loaded.pt")
    ours = FourDThinkerForConditionalGeneration.from_pretrained(run).state_dict()
    before = FourDThinkerForConditionalGeneration.from_pretrained(checkpoint).state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert any(not torch.equal(before[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    ("parent", "name", "lora", "words"),
    [
        ("checkpoint", None, False, "'hub_model_id': must be OWNER/NAME"),
        ("checkpoint", "me/tiny", True, "give merge_adapter too"),
        ("tiny_folder", "me/tiny", False, "no card"),
    ],
)
@pytest.mark.parametrize(("launcher", "config"), [(sft, DIFTConfig), (grpo, FourDRLConfig)])
def test_a_model_that_could_not_be_published_is_not_trained(
    launcher, config, parent, name, lora, words, request, split, tmp_path
):
    run = launcher.ScriptArguments(records=[str(split / "records.jsonl")])
    args = {"use_cpu": True, "bf16": False, "report_to": "none", "push_to_hub": True, "hub_model_id": name}
    model = ModelConfig(model_name_or_path=str(request.getfixturevalue(parent)), use_peft=lora)
    with pytest.raises(ValueError, match=words):
        launcher.main(run, config(output_dir=str(tmp_path / "run"), **args), model)


# A split, and the demo


DATASET = """
from datasets import load_dataset
rows = load_dataset("me/split")["train"]
print(len(rows), rows[0]["question"], rows[0]["video"], sep="|")
"""


def test_a_split_is_published_and_loads(split, hub, tmp_path):
    folder = shutil.copytree(split, tmp_path / "split")
    (folder / "videos" / "stray.mp4").write_bytes(b"x")
    result = run("publish", folder, "me/split", "--dataset")
    assert result.exit_code == 0, result.output
    assert "not uploaded: videos/stray.mp4, not needed to use it" in result.stdout
    files = hub.repositories["dataset", "me/split"].files
    sent = {path.relative_to(split).as_posix() for path in split.rglob("*") if path.is_file()} - {"work.json"}
    assert set(files) == {"README.md", *sent} and not (folder / "README.md").exists()
    text = files["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "records.jsonl"}]}]
    assert (data["license"], data["size_categories"]) == ("apache-2.0", "n<1K")
    assert "4 questions (level 1; seed 3; split train)" in text and "| camera_motion | 1 |" in text
    assert 'load_dataset("me/split")' in text
    done = run_without_package(DATASET, tmp_path, hub)
    assert done.returncode == 0, done.stderr
    first = json.loads((split / "records.jsonl").read_text().splitlines()[0])
    assert done.stdout.splitlines()[-1] == f"4|{first['question']}|{first['video']}"


def test_a_split_with_a_card_of_other_records_is_refused(split, tmp_path):
    folder = shutil.copytree(split, tmp_path / "split")
    assert run("card", folder).stdout == f"{folder / 'README.md'}\n"
    in_card("## Licence", "Ours.\n\n## Licence")(folder)
    assert "Ours." in make_plan(folder, "dataset").files["README.md"]
    lines = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join(lines[:3]))
    refused(run("publish", folder, "me/split", "--dataset"), "not those of the records", "fourdthinker card")
    (folder / "README.md").unlink()
    foreign = json.loads(lines[0]) | {"source": None, "id": "mine"}
    (folder / "records.jsonl").write_text(json.dumps(foreign))
    refused(run("publish", folder, "me/split", "--dataset"), "mine", "fourdthinker simulate")
    (folder / "records.jsonl").unlink()
    refused(run("publish", folder, "me/split", "--dataset"), "no records.jsonl")


def test_the_demo_becomes_a_space(hub):
    """The demo is built from the uploaded files alone. This does not show that a ZeroGPU Space accepts them."""
    result = run("publish", ROOT, "me/demo", "--space")
    assert result.exit_code == 0, result.output
    files = hub.repositories["space", "me/demo"].files
    assert {
        "app.py",
        "fourdthinker_command.py",
        "fourdthinker_hf/qa.py",
        "checkpoints/4dthinker-tiny/config.json",
    } <= set(files)
    assert not any(path.startswith(("tests/", "train/", ".git")) for path in files)
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert (data["sdk"], data["app_file"], data["title"]) == ("gradio", "app.py", SPACE_TITLE)
    assert len(SPACE_TEXT) <= 60 and data["short_description"] == SPACE_TEXT
    needs = files["requirements.txt"].decode().splitlines()
    ours = {Requirement(line).name: line for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(needs[1:]) < set(ours.values()) and len(needs) == 7
    (pin,) = Requirement(needs[0]).specifier
    assert needs[0].startswith("torch==") and Requirement(ours["torch"]).specifier.contains(pin.version)
    refused(run("publish", BUNDLED, "me/demo", "--space"), "no app.py")
    refused(run("publish", BUNDLED, "me/demo", "--space", "--dataset"), "cannot be given together")


def test_what_a_link_points_to_outside_the_folder_is_refused(checkpoint, split, tmp_path):
    (tmp_path / "private").write_text("private")
    (checkpoint / "LICENSE").symlink_to(tmp_path / "private")
    (checkpoint / "NOTICE").write_text("notice")
    with pytest.raises(ValueError, match="LICENSE: this is a link to .*/private, outside the folder") as refusal:
        make_plan(checkpoint)
    assert "NOTICE" not in str(refusal.value)
    folder = shutil.copytree(split, tmp_path / "split")
    shutil.move(folder / "images", tmp_path / "images")
    (folder / "images").symlink_to(tmp_path / "images")
    with pytest.raises(ValueError, match="images/000000_0.png: this is a link to "):
        make_plan(folder, "dataset")


def test_a_token_is_found_in_any_file(checkpoint, split, tmp_path):
    folder = shutil.copytree(split, tmp_path / "split")
    token = b"hf_" + b"a" * 34
    with (folder / "images" / "000000_0.png").open("ab") as file:
        file.write(b"\0\xff" + token)
    with pytest.raises(ValueError, match="images/000000_0.png, line .*: this looks like a Hugging Face token"):
        make_plan(folder, "dataset")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt", "note": token.decode()})
    (checkpoint / "evaluation").mkdir()
    with pytest.raises(ValueError, match="model.safetensors, line 1: this looks like a Hugging Face token"):
        make_plan(checkpoint)


def test_a_damaged_figure_is_named(checkpoint):
    (checkpoint / "evaluation").mkdir()
    (checkpoint / "evaluation" / "x.plain.json").write_text('{"model_sha256": ')
    with pytest.raises(ValueError, match="evaluation/x.plain.json: this is not JSON"):
        make_plan(checkpoint)
