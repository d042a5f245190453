"""The `fourdthinker` command: what it prints, and that each error is one clear line."""

import ctypes
import json
import os
import struct
import subprocess
import sys
import tomllib
import traceback
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import typer
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from fourdthinker_hf import checkpoints
from fourdthinker_hf.cli import app
from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.data.simulation import generate_records
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS
from fourdthinker_hf.output_files import claim
from fourdthinker_hf.qa import VideoQA

OPTIONS = ["--option", "to the left", "--option", "to the right"]
REPLY = "<think>red ball <|latent_start|> left.</think><answer>to the left</answer><|im_end|>"


ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands
NAMES = "ask simulate contact-sheet annotate evaluate report maps pictures filter memory".split()
NAMES += "convert merge card publish".split()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def scripted(tiny_folder, script, monkeypatch):
    qa = VideoQA.from_pretrained(tiny_folder)
    script(qa, REPLY)
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda *place: qa)


def refused(result, *words):
    """Exit status 2, nothing on stdout, one line on stderr that holds `words`."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"fourdthinker {project['version']}\n")


def test_help_version_and_mistakes_appear_without_importing_torch(tmp_path):
    program = (
        "import sys; sys.argv = ['fourdthinker', *sys.argv[1:]]; import fourdthinker_command\n"
        "try:\n    fourdthinker_command.app()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    video, missing = "examples/real.mp4", str(tmp_path / "missing.mp4")
    for arguments, status, out, err in (
        (["--version"], 0, "fourdthinker ", ""),
        (["--help"], 0, "Answer questions about videos", ""),
        (["ask", "--help"], 0, "Answer QUESTION about VIDEO", ""),
        (["ask", missing, "Where?"], 2, "", f"fourdthinker: {missing}: no such file\n"),
        (["ask", video, "Where?", "--model", video], 2, "", f"{video}: this is a file; give the folder of a"),
        (["ask", video, "Where?", "--dtype", "int8"], 2, "", "dtype must be one of auto, "),
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == status and out in done.stdout and err in done.stderr, done.stderr
        assert done.stderr.count("\n") == (status != 0)


def test_help_lists_every_command_with_a_sentence_of_its_own():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}, terminal_width=200)
    assert result.exit_code == 0
    sentences = [command.help.splitlines()[0] for command in COMMANDS.values()]
    assert list(COMMANDS) == NAMES and len(set(sentences)) == len(NAMES)
    listed = [" ".join(line.strip("│ ").split()) for line in result.stdout.splitlines()]
    for name, sentence in zip(NAMES, sentences, strict=True):
        assert f"{name} {sentence}" in listed and sentence[0].isupper() and sentence.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_option_is_explained_in_sentences(name):
    texts = {parameter.name: parameter.help for parameter in COMMANDS[name].params if parameter.name != "help"}
    assert texts
    assert [key for key, text in texts.items() if not (text and text.endswith("."))] == []


def test_ask_prints_reasoning_images_and_the_chosen_option(clip, scripted):
    result = run("ask", clip, "Where does it move?", *OPTIONS)
    assert result.exit_code == 0, result.output
    reasoning, image, answer, option = result.stdout.splitlines()
    assert reasoning == "Reasoning: red ball <output_image> left."
    assert image.startswith("Mental image 1: resembles the video at ") and image.endswith(" s")
    assert answer == "Answer: to the left"
    assert option.startswith("Option: to the left (") and option.endswith("%)")


def test_ask_json(clip, scripted):
    reply = json.loads(run("ask", clip, "Where?", *OPTIONS, "--start", 1, "--end", 3, "--json").stdout)
    assert (reply["answer"], reply["option"], reply["truncated"]) == ("to the left", "to the left", False)
    assert reply["chosen_by"] == "words"
    assert sum(reply["probabilities"].values()) == pytest.approx(1)
    assert 1 <= reply["images"][0]["time"] <= 3


def test_ask_runs_a_checkpoint_from_its_folder(clip, tiny_folder):
    result = run("ask", clip, "Where?", "--model", tiny_folder, "--max-new-tokens", 4)
    assert result.exit_code == 0 and "Note: the reply was cut before an answer" in result.stdout


def test_ask_a_video_of_one_frame(tmp_path, write_video, scripted):
    video = write_video(tmp_path / "one.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    assert "Mental image 1: resembles the video at 0.00 s" in run("ask", video, "Where?").stdout


def test_ask_refuses_what_is_no_video(tmp_path, scripted):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    refused(run("ask", tmp_path / "missing.mp4", "Where?"), "missing.mp4", "no such file")
    refused(run("ask", tmp_path / "empty.mp4", "Where?"), "empty.mp4", "0 bytes")
    refused(run("ask", tmp_path / "text.mp4", "Where?"), "text.mp4", "not a video")
    refused(run("ask", tmp_path, "Where?"), "is a folder")


def test_ask_refuses_what_is_no_question(clip, scripted):
    refused(run("ask", clip, " "), "question is empty")
    refused(run("ask", clip, "Where?", "--option", "left"), "at least two")
    refused(run("ask", clip, "Where?", "--option", "left", "--option", "left"), "the same")
    refused(run("ask", clip, "Where?", "--start", 99), "start=99", "outside the clip")


def test_ask_refuses_what_is_no_checkpoint(clip, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused(run("ask", clip, "Where?", "--model", tmp_path), "latent_token_id")


def test_simulate_refuses_an_unknown_task_and_a_missing_extra(tmp_path, monkeypatch):
    arguments = ("simulate", "--num", 1, "--seed", 0, "--out", tmp_path)
    refused(run(*arguments, "--tasks", "juggling"), "juggling", "camera_motion")
    refused(run(*arguments, "--reasoning", "words"), "unknown reasoning 'words'; it is paths, pictures or places")

    def missing(*args, **kwargs):
        raise ImportError('simulating needs MuJoCo: pip install "fourdthinker-hf[sim]"')

    monkeypatch.setattr(generate_records, "simulate", missing)
    refused(run(*arguments), "fourdthinker-hf[sim]")


def test_simulate_passes_on_what_it_is_given(tmp_path, monkeypatch):
    calls = []

    def make(*args, **kwargs):
        calls.append((args, kwargs))
        return "records.jsonl"

    monkeypatch.setattr(generate_records, "simulate", make)
    run("simulate", "--num", 3, "--seed", 7, "--out", tmp_path, "--tasks", "faster_object", "--tasks", "camera_motion")
    run("simulate", "--num", 2, "--seed", 1, "--out", tmp_path, "--level", 3, "--split", "unseen")
    result = run("simulate", "--num", 1, "--seed", 0, "--out", tmp_path, "--reasoning", "pictures")
    assert result.stdout == "records.jsonl\n"
    usual = {"level": 1, "split": "train", "reasoning": "paths"}
    assert calls == [
        ((3, 7, tmp_path), {**usual, "tasks": ["faster_object", "camera_motion"]}),
        ((2, 1, tmp_path), {**usual, "level": 3, "split": "unseen", "tasks": DSR_TASKS}),
        ((1, 0, tmp_path), {**usual, "tasks": BASIC_TASKS, "reasoning": "pictures"}),
    ]


@pytest.mark.parametrize("arguments", [["memory", "recipe.yaml"], ["filter", "a.jsonl", "--out", "b.jsonl"]])
def test_commands_of_training_name_the_extra_that_they_need(arguments):
    program = "import sys; sys.modules['datasets'] = None; from fourdthinker_hf.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    wanted = 'fourdthinker: This command needs the package datasets: pip install "fourdthinker-hf[train]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)


def test_evaluate_prints_the_table_and_writes_predictions(clip, tiny_folder, tmp_path):
    records = tmp_path / "records.jsonl"
    record = Record("1", "Where?", "left", options=["left", "right"], task="way", video=str(clip))
    write_records(records, [record])
    arguments = ["--benchmark", records, "--out", tmp_path / "out", "--model", tiny_folder, "--max-new-tokens", 4]
    result = run("evaluate", *arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ")[0] for line in result.stdout.splitlines()[2:]]
    assert rows == ["| way", "| macro (mean of tasks)", "| micro (pooled)"]
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1
    refused(run("evaluate", *arguments, "--probe", "blue"), "no-video", "blue")
    page = run("report", tmp_path / "out", "--out", tmp_path / "page.html")
    assert page.stdout == f"{tmp_path / 'page.html'}\n" and (tmp_path / "page.md").exists()
    refused(run("report", tmp_path, "--out", tmp_path / "other.html"), "no finished run")
    refused(run("maps", *arguments[:-2], "--source", "dreams"), "model", "targets", "dreams")


def in_a_process(check):
    """Runs `check` in a process of its own, which has no other rights than the modes of files give their owner. (root
    has others.)"""
    if (child := os.fork()) == 0:
        try:
            if sys.platform == "linux" and os.geteuid() == 0:  # no capabilities, by capset(2)
                assert ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's capabilities")
def test_places_that_cannot_be_written_are_refused_before_a_model_is_loaded(
    clip, tiny_folder, tmp_path, monkeypatch, hub
):
    closed = tmp_path / "closed"
    closed.mkdir()
    write_records(tmp_path / "records.jsonl", [Record("1", "Where?", "a", options=["a", "b"], video=str(clip))])
    hub.add("me/tiny", {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(closed / "cache"))
    monkeypatch.setattr(checkpoints, "load_network", lambda *args, **kwargs: pytest.fail("a model is loaded"))
    source = {"--benchmark": tmp_path / "records.jsonl", "--model": tiny_folder}
    source = [str(part) for pair in source.items() for part in pair]

    def check():
        closed.chmod(0o555)
        for arguments in (
            ("evaluate", *source, "--out", closed),
            ("evaluate", *source, "--out", closed / "new"),
            ("maps", *source, "--out", closed),
            ("filter", tmp_path / "records.jsonl", "--model", tiny_folder, "--out", closed / "kept.jsonl"),
            ("simulate", "--num", 1, "--seed", 1, "--out", closed / "new"),
            ("annotate", clip, "--out", closed / "new"),
            ("contact-sheet", tmp_path / "records.jsonl", closed / "sheet.png"),
            ("merge", tmp_path / "adapter", closed / "new"),
        ):
            refused(run(*arguments), f"Permission denied: '{closed}")
        words = (
            f"me/tiny: the download failed: {closed / 'cache'} cannot be written .*; set HF_HOME to a folder that can"
        )
        with pytest.raises(ValueError, match=words):
            checkpoints.find_model("me/tiny")

    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_folder)}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    in_a_process(check)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_second_run_at_the_same_place_is_refused_before_a_model_is_loaded(clip, tiny_folder, tmp_path, monkeypatch):
    write_records(tmp_path / "records.jsonl", [Record("1", "Where?", "a", options=["a", "b"], video=str(clip))])
    monkeypatch.setattr(checkpoints, "load_network", lambda *args, **kwargs: pytest.fail("a model is loaded"))
    source, shard = tmp_path / "records.jsonl", tmp_path / "clips" / "parts" / "shard-1-of-1.lock"
    with ExitStack() as stack:
        for path in (tmp_path / "out" / "work.json", tmp_path / "kept.work.json"):
            stack.enter_context(claim(path, {}))
        work = {"command": "annotate", **dict.fromkeys(("sam3", "server", "namer", "reasoner")), "seed": 0}
        stack.enter_context(claim(tmp_path / "clips" / "work.json", work, shared=True))
        stack.enter_context(claim(shard, {"shard": [1, 1]}))

        def check():
            for arguments in (
                ("evaluate", "--benchmark", source, "--model", tiny_folder, "--out", tmp_path / "out"),
                ("filter", source, "--model", tiny_folder, "--out", tmp_path / "kept.jsonl"),
                ("simulate", "--num", 1, "--seed", 1, "--out", tmp_path / "out"),
                ("annotate", clip, "--out", tmp_path / "clips"),
            ):
                refused(run(*arguments), "another process is at this work; wait until it ends")

        in_a_process(check)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_too_little_memory_is_one_line_and_what_was_written_is_kept(clip, tiny_folder, tmp_path):
    """The second question is about a picture of 192 MB, which the process may not get."""
    Image.new("RGB", (8000, 8000)).save(tmp_path / "large.png", compress_level=1)
    asked = {"question": "Where?", "options": ["a", "b"], "answer": "a"}
    rows = [{"id": "1", **asked, "video": str(clip)}, {"id": "2", **asked, "frames": ["large.png"] * 2}]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--benchmark", tmp_path / "records.jsonl", "--out", tmp_path / "out", "--model", tiny_folder]
    arguments += ["--max-new-tokens", 2, "--batch-size", 1]

    def check():
        import resource

        run("--version")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 180_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        result = run("evaluate", *arguments)
        *_, progress, line, end = result.stderr.split("\n")
        assert (result.exit_code, result.stdout, end) == (2, "", "")
        assert line.startswith("fourdthinker: There is too little memory") and "What was written is kept" in line

    in_a_process(check)
    kept = (tmp_path / "out" / "predictions.jsonl").read_text()
    assert kept.count("\n") == 1
    assert run("evaluate", *arguments).exit_code == 0
    assert (tmp_path / "out" / "predictions.jsonl").read_text().startswith(kept)


def test_memory_tells_what_a_recipe_needs(tiny_folder):
    recipe, hardware = "train/recipes/tiny/dift.yaml", "train/accelerate/zero2.yaml"
    shape = ("--config", tiny_folder, "--frames", 8, "--pixels", 84 * 84, "--text", 60, "--labelled", 40)
    result = run("memory", recipe, *shape, "--accelerate", hardware, "--gpus", 2)
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.startswith("runs/text_only on each of 2 GPU(s), ZeRO-2, gradient checkpointing off; 16 row(s) of 36 ")
    assert [row.split()[0] for row in rows] == ["weights", "gradients", "optimizer", "communication", "step", "total"]
    refused(run("memory", recipe), "runs/text_only", "--config")
    refused(run("memory", recipe, *shape, "--labelled", 61), "61 labelled tokens", "60")
