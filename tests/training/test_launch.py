"""How the launchers begin and end: a run without arguments, missing records, wrong arguments, the gain."""

import json
import shutil
import sys
from types import SimpleNamespace

import grpo
import pytest
import sft
import torch
import yaml
from launches import ROOT, finish, log_history, start
from peft import LoraConfig, get_peft_model
from qwen_checkpoint import write_source
from safetensors import SafetensorError
from trl import ModelConfig

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.training import DIFTConfig
from fourdthinker_hf.training.run import checkpoint_to_resume, launch, load_for_training, print_gain, recipe_commands

SFT = (sft.ScriptArguments, DIFTConfig, ModelConfig)
SMALL = {
    "records": ["data/train/records.jsonl"],
    "eval_records": ["data/train/records.jsonl"],
    "output_dir": "runs/out",
    "max_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_on_start": True,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
}


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_run_without_arguments_makes_its_data_and_prints_its_gain(tiny_folder, tmp_path, name):
    """In a checkout whose recipe is small."""
    path = tmp_path / f"train/recipes/tiny/{'short_dift' if name == 'sft' else 'short_4drl'}.yaml"
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / f"train/{name}.py", tmp_path / "train")
    settings = SMALL | {"model_name_or_path": str(tiny_folder), "learning_rate": 1e-3}
    if name == "grpo":
        settings |= {"num_generations": 2, "num_generations_eval": 2, "max_completion_length": 4}
    commands = "#   fourdthinker simulate --num 2 --seed 1 \\\n#      --out data/train\n#   accelerate launch\n"
    path.write_text(commands + yaml.safe_dump(settings))
    output = finish(start(tmp_path / f"train/{name}.py"))
    assert "fourdthinker simulate --num 2 --seed 1 --out data/train" in output
    history = log_history(tmp_path / "runs/out")
    metric, text = ("eval_reward", "mean reward") if name == "grpo" else ("eval_text_loss", "loss of the text")
    first, last = (row[metric] for row in history if metric in row)
    assert "Evaluated at step 0 and at step 2: " in output and f"{text} {first:.3g} -> {last:.3g}" in output


@pytest.fixture
def launched(monkeypatch, capsys, tmp_path):
    """`launched(*arguments) -> (status, stdout, stderr)` of train/sft.py, in which `main` stands for the training."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, main=lambda *parsed: 0):
        monkeypatch.setattr(sys, "argv", ["train/sft.py", *map(str, arguments)])
        status = launch(main, SFT, ROOT / "train/recipes/tiny/short_dift.yaml")
        return status, *capsys.readouterr()

    return run


def test_missing_records_end_the_run_with_the_commands_that_make_them(launched):
    """In two lines."""
    status, _, error = launched("--config", ROOT / "train/recipes/tiny/dift.yaml")
    assert status == 2 and error == (
        "train/sft.py: data/questions/records.jsonl: there is no such file. These commands make the data:\n"
        "fourdthinker simulate --num 12000 --seed 2 --out data/questions\n"
    )
    simulate, filtered = recipe_commands(ROOT / "train/recipes/tiny/4drl.yaml")
    assert simulate == "fourdthinker simulate --num 10000 --seed 7005 --out data/rl"
    assert filtered.startswith("fourdthinker filter data/rl/records.jsonl --out data/rl/hard.jsonl --model ")


def test_a_finished_run_needs_no_records(launched, tmp_path):
    (tmp_path / "runs/dift").mkdir(parents=True)
    (tmp_path / "runs/dift/trainer_state.json").write_text("{}")
    assert launched("--config", ROOT / "train/recipes/tiny/dift.yaml")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "gone.yaml"], "No such file or directory: 'gone.yaml'"),
        (["--records", "a.jsonl", "--packing", "true"], "packing=True does not work with DIFT"),
        (["--records", "a.jsonl", "--bf16", "false", "--use_cpu", "true"], "a.jsonl: there is no such file."),
    ],
)
def test_a_wrong_argument_is_one_message(launched, arguments, message):
    status, _, error = launched(*arguments)
    assert status == 2 and message in error and error.count("\n") == 1 and "Traceback" not in error


def test_too_little_memory_or_disk_ends_a_run_with_one_message(launched, tiny_folder, clip, tmp_path):
    row = {"video": str(clip), "question": "Where?", "options": ["a", "b"], "answer": "a", "reasoning": "It is a."}
    (tmp_path / "records.jsonl").write_text(json.dumps(row))
    arguments = ["--records", tmp_path / "records.jsonl", "--model_name_or_path", tiny_folder]
    arguments += ["--output_dir", tmp_path / "out", "--use_cpu", "true", "--bf16", "false"]
    status, out, error = launched(*arguments, main=lambda *parsed: torch.empty(2**50, dtype=torch.uint8))
    assert (status, out) == (2, "") and error.startswith("train/sft.py: there is too little memory. ")
    assert error.count("\n") == 1

    def write(*parsed):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert launched(*arguments, main=write)[::2] == (
        2,
        "train/sft.py: a file cannot be read or written. What was written before is safe: mend that and run the same "
        "command (Error while serializing: I/O error: No space left on device (os error 28))\n",
    )
    with pytest.raises(RuntimeError, match="shape"):
        launched(*arguments, main=lambda *parsed: torch.ones(2) @ torch.ones(3, 1))


def test_a_run_goes_on_only_with_what_it_began_with(launched, tiny_folder, clip, tmp_path):
    row = {"id": "1", "video": str(clip), "question": "?", "options": ["a", "b"], "answer": "a"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"answer": "b"}) + "\n")
    usual = ["--use_cpu", "true", "--bf16", "false", "--output_dir", "out", "--model_name_or_path", tiny_folder]
    assert launched("--records", "a.jsonl", *usual)[0] == 0
    assert launched("--records", "a.jsonl", *usual, "--save_steps", "3", "--dataloader_num_workers", "1")[0] == 0
    status, _, error = launched("--records", "b.jsonl", *usual, "--learning_rate", "0.5")
    assert status == 2 and error.count("\n") == 1
    assert "out holds another run (records was " in error and "learning_rate was 2e-05, now 0.5" in error
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{")
    status, _, error = launched("--records", "a.jsonl", *usual[:-1], damaged)
    assert status == 2 and "damaged/tokenizer.json: this is not JSON" in error and error.count("\n") == 1


def test_only_the_first_process_of_a_machine_prints_the_message(launched, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched("--config", "gone.yaml") == (2, "", "")


def test_the_gain_is_that_of_the_first_and_the_last_evaluation(capsys):
    rows = [{"eval_runtime": 1.0, "eval_reward": 0.5 + step / 100, "step": step} for step in (0, 5, 10)]
    state = SimpleNamespace(log_history=[rows[0], {"loss": 1.0, "step": 1}, *rows[1:]])
    trainer = SimpleNamespace(state=state, is_world_process_zero=lambda: True)
    print_gain(trainer)
    assert capsys.readouterr().out == "Evaluated at step 0 and at step 10: mean reward 0.5 -> 0.6\n"
    state.log_history = rows[:1]
    print_gain(trainer)
    assert capsys.readouterr().out == ""


def test_both_launchers_run_a_recipe_of_the_bundled_model_without_arguments():
    for launcher in (sft, grpo):
        assert yaml.safe_load(launcher.RECIPE.read_text())["model_name_or_path"] == "checkpoints/4dthinker-tiny"


# The checkpoint to go on from


@pytest.fixture
def write_checkpoint(tmp_path):
    """`write_checkpoint(step, *files) -> folder`: a complete checkpoint, by default of one process."""

    def write(step, *files):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files or ("optimizer.pt", "rng_state.pth"):
            (folder / name).write_text("")
        (folder / "trainer_state.json").write_text('{"global_step": 1}')
        return folder

    return write


def checkpoint_of(folder, **settings) -> str | None:
    return checkpoint_to_resume(DIFTConfig(str(folder), use_cpu=True, bf16=False, **settings))


def test_the_given_checkpoint_is_taken_instead_of_the_newest(write_checkpoint, tmp_path):
    assert checkpoint_of(tmp_path) is None
    first, last = write_checkpoint(9), write_checkpoint(10)
    assert checkpoint_of(tmp_path) == str(last) == checkpoint_of(tmp_path, resume_from_checkpoint="true")
    assert checkpoint_of(tmp_path, resume_from_checkpoint=str(first)) == str(first)
    with pytest.raises(ValueError, match="resume_from_checkpoint=gone: it is no checkpoint"):
        checkpoint_of(tmp_path, resume_from_checkpoint="gone")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors"], r"checkpoint-10 has no optimizer state \(save_only_model\)"),
        (["latest", "rng_state_0.pth", "rng_state_1.pth"], r"written by 2 process\(es\), and 1 would see .* start 2;"),
    ],
)
def test_a_checkpoint_from_which_a_run_cannot_go_on_is_refused(write_checkpoint, launched, tmp_path, files, message):
    """With the way to train on from its weights, and before anything is loaded."""
    folder = write_checkpoint(10, *files)
    with pytest.raises(ValueError, match=f"{message}.*--model_name_or_path {folder} --output_dir NEW$"):
        checkpoint_of(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    given = ["--records", "records.jsonl", "--output_dir", tmp_path, "--use_cpu", "true", "--bf16", "false"]
    status, _, error = launched(*given)
    assert status == 2 and f"{folder} " in error and "Traceback" not in error


def test_an_adapter_is_merged_into_weights_that_are_not_quantized(tiny_folder):
    """Without bitsandbytes a quantized model could not be loaded at all."""
    model = load_for_training(ModelConfig(str(tiny_folder), load_in_8bit=True), quantized=False)
    assert not getattr(model, "is_quantized", False)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_run_starts_from_a_whole_converted_checkpoint(launched, tiny_folder, tmp_path, capsys):
    """A published one would train with other settings than it was trained with, and TRL's reference model would be a
    plain Qwen2.5-VL."""
    published = write_source(tmp_path / "published", latents=True)
    base = write_source(tmp_path / "base")
    adapter, model = tmp_path / "adapter", FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    records = tmp_path / "records.jsonl"
    records.touch()
    capsys.readouterr()  # the loading bar
    arguments = ("--records", records, "--output_dir", tmp_path / "out", "--use_cpu", "true", "--bf16", "false")
    for model, command in (
        (published, f"fourdthinker convert {published} DEST"),
        (base, "fourdthinker convert"),
        (adapter, f"fourdthinker merge {adapter} DEST"),
    ):
        status, _, error = launched(*arguments, "--model_name_or_path", model)
        assert status == 2 and error.startswith(f"train/sft.py: {model}: ") and command in error
        assert error.count("\n") == 1
    assert launched(*arguments, "--model_name_or_path", tiny_folder)[0] == 0
