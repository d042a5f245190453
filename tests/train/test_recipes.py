"""The recipes: the commands in their comments are valid, and together they make every file that a recipe reads."""

import re
import shlex
import shutil
from pathlib import Path

import decoder
import grpo
import init_model
import make
import pretrain_tower
import pytest
import sft
import typer
import yaml
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.cli import app
from fourdthinker_hf.training import DIFTConfig, FourDRLConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [  # a recipe may start from the output_dir of one before it
    "tiny/text_only",
    "tiny/dift",
    "tiny/layered_words",
    "tiny/layered_text_only",
    "tiny/layered_dift",
    "tiny/dift_forget_video",
    "tiny/4drl",
    "tiny/short_dift",
    "tiny/short_4drl",
    "tiny/decoder",
    "3b/dift",
    "3b/decoder",
    "3b/4drl",
    "7b/dift",
    "7b/decoder",
    "7b/4drl",
]
PROGRAMS = ("accelerate", "fourdthinker", "hf", "ln", "python")
LAUNCHERS = {
    "train/sft.py": (sft.ScriptArguments, DIFTConfig, ModelConfig),
    "train/grpo.py": (grpo.ScriptArguments, FourDRLConfig, ModelConfig),
    "train/decoder.py": (decoder.ScriptArguments, TrainingArguments, ModelConfig),
}
SCRIPTS = {
    "train/tiny/init_model.py": init_model.main,
    "train/tiny/pretrain_tower.py": pretrain_tower.main,
    "train/tiny/make.py": make.main,
}


def recipe_path(name: str) -> str:
    return f"train/recipes/{name}.yaml"


def settings_of(name: str) -> dict:
    return yaml.safe_load((ROOT / recipe_path(name)).read_text())


def code_lines(name: str) -> list[str]:
    """The lines of code in a recipe's comment: they are indented by three spaces."""
    lines = (ROOT / recipe_path(name)).read_text().splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("#   "))
    return code.replace("\\\n", " ").splitlines()


def commands(name: str) -> list[list[str]]:
    return [shlex.split(line) for line in code_lines(name) if line.split()[0] in PROGRAMS]


def parse_command(command, arguments: list[str]) -> dict:
    """The parameters of a typer command. Raises if an option does not exist or one is missing; runs nothing."""
    return command.make_context(command.name, list(arguments)).params


def parse_launch(words: list[str]):
    """Launcher, script arguments, training arguments and model arguments of an `accelerate launch` command."""
    launcher = next(word for word in words if word in LAUNCHERS)
    options = words[words.index(launcher) + 1 :]
    parser = TrlParser(LAUNCHERS[launcher])
    return launcher, *parser.parse_args_and_config([*options, "--use_cpu", "true"])  # bf16 without a GPU


def reads_and_writes(words: list[str]) -> tuple[list, list]:
    """The files and folders that a command reads, and those that it writes."""
    program, *arguments = words
    if program == "hf":
        return [], [arguments[arguments.index("--local-dir") + 1]]
    if program == "ln":
        return [Path(arguments[-1]).parent], []
    if program == "accelerate":
        hardware = [words[words.index("--config_file") + 1]] if "--config_file" in words else []
        launcher, script_args, training_args, model_args = parse_launch(words)
        config = words[words.index("--config") + 1]
        reads = [*hardware, launcher, config, *script_args.records, model_args.model_name_or_path]
        return reads, [training_args.output_dir]
    if program == "python":
        script = typer.Typer()
        script.command()(SCRIPTS[arguments[0]])
        given = parse_command(typer.main.get_command(script), arguments[1:])
        if arguments[0] == "train/tiny/make.py":
            stages = make.STAGES[: make.STAGES.index(given["until"]) + 1]
            folders = ["data" if stage == "clips" else stage for stage in stages]
            return [arguments[0]], [given["runs"] / f"tiny_{given['scale']:g}" / folder for folder in folders]
        model = [given["model"]] if "model" in given else []
        return [arguments[0], *model, *given["records"]], [given["out"]]
    name, *arguments = arguments
    given = parse_command(typer.main.get_command(app).commands[name], arguments)
    if name == "simulate":
        return [], [Path(given["out"]) / "records.jsonl"]
    if name == "filter":
        return [given["records"], given["model"]], [given["out"]]
    if name == "convert":
        return [], [given["dest"]]
    assert name == "memory"
    return [given["recipe"], given["accelerate"]], []


def is_in_repository(path: Path) -> bool:
    return path.parts[0] not in ("data", "runs") and (ROOT / path).exists()  # git ignores these two folders


def missing_files(name: str) -> list[str]:
    """What a recipe's commands read that is neither in the repository nor made before it is read."""
    earlier = RECIPES[: RECIPES.index(name)]
    made, missing = {Path(settings_of(other)["output_dir"]) for other in earlier}, []
    for words in commands(name):
        reads, writes = reads_and_writes(words)
        for path in map(Path, reads):
            if not is_in_repository(path) and not made & {path, *path.parents}:
                missing.append(f"{path} of {shlex.join(words)}")
        made |= set(map(Path, writes))
    return missing


def test_every_recipe_is_listed():
    assert sorted(RECIPES) == sorted(
        path.relative_to(ROOT / "train/recipes").with_suffix("").as_posix()
        for path in (ROOT / "train/recipes").rglob("*.yaml")
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_make_what_the_recipe_reads(name):
    """The last command runs the recipe as it is, so its model and its records are among what the commands read."""
    assert missing_files(name) == []
    *_, last = commands(name)
    assert last[0] == "accelerate" and last[last.index("--config") + 1] == recipe_path(name)
    _, script_args, training_args, model_args = parse_launch(last)
    settings = settings_of(name)
    assert script_args.records == settings["records"] and training_args.output_dir == settings["output_dir"]
    assert model_args.model_name_or_path == settings["model_name_or_path"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("4drl")])
def test_the_filter_samples_as_the_run_does(name):
    """From the same model, by the same temperature and length, and it writes the file that the run reads."""
    (words,) = [words for words in commands(name) if words[:2] == ["fourdthinker", "filter"]]
    given = parse_command(typer.main.get_command(app).commands["filter"], words[2:])
    settings = settings_of(name)
    assert given["model"] == settings["model_name_or_path"] and [str(given["out"])] == settings["records"]
    assert given["temperature"] == settings["temperature"]
    assert given["max_new_tokens"] == settings["max_completion_length"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name[0] in "37"])
def test_large_models_are_loaded_in_bf16(name):
    """TRL's default is float32, twice the memory."""
    assert settings_of(name)["dtype"] == "bfloat16" and settings_of(name)["bf16"]


@pytest.mark.parametrize("name", ["3b/dift", "3b/4drl", "7b/dift", "7b/4drl"])
def test_the_python_lines_set_the_processor(name, tiny_folder, tmp_path, monkeypatch):
    lines = [line for line in code_lines(name) if line.split()[0] not in PROGRAMS]
    folder = re.search(r'folder = "(.*)"', "\n".join(lines))[1]
    assert folder == settings_of(name)["model_name_or_path"]
    shutil.copytree(tiny_folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    processor = FourDThinkerProcessor.from_pretrained(folder)
    assert processor.second_per_grid == 1.0
    sampling = (processor.max_frames, processor.video_processor.size["longest_edge"])
    assert sampling == ((50, 256 * 28 * 28) if name.endswith("dift") else (16, 448 * 448))
    assert name.endswith("4drl") or processor.fps == 1.0


def test_a_file_that_no_command_makes_is_noticed(monkeypatch):
    command = "fourdthinker filter data/rl/records.jsonl --out data/rl/hard.jsonl --model runs/dift"
    monkeypatch.setattr(f"{__name__}.commands", lambda name: [shlex.split(command)])
    assert missing_files("tiny/4drl") == [f"data/rl/records.jsonl of {command}"]
