"""The model and the task for lmms-eval. It needs an environment of its own (docs/evaluation.md), so most runs of these
tests replace the four of its classes that ours use. In its environment the same tests use the real classes, and one
more test runs lmms-eval itself:

    .venv-lmms/bin/pip install pytest pytest-timeout
    .venv-lmms/bin/python -m pytest tests/evaluation/test_lmms.py
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fourdthinker_hf.checkpoints import BUNDLED
from fourdthinker_hf.evaluation import evaluate, lmms

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "fourdthinker_hf/evaluation/lmms_tasks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = importlib.util.find_spec("lmms_eval") is not None
DOC = {"question": "Way?", "options": ["left", "right"], "answer": "right", "video": "videos/0.mp4"}


def load_task(path=TASKS / "dsr_sim.yaml"):
    """Read the task as lmms-eval does: `!function file.name` is a function of the file beside it."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        file, name = loader.construct_scalar(node).split(".")
        spec = importlib.util.spec_from_file_location(file, path.with_name(f"{file}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)

    Loader.add_constructor("!function", function)
    return yaml.load(path.read_text(), Loader)


@pytest.fixture
def lmms_eval(monkeypatch):
    """The classes of lmms-eval that ours use: the real ones, or if it is not installed, others with their fields."""
    if INSTALLED:
        return
    registry = SimpleNamespace(ModelManifest=SimpleNamespace)
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)

    def result(text, token_counts):
        return SimpleNamespace(text=text, token_counts=token_counts)

    monkeypatch.setattr(lmms, "GenerationResult", result, raising=False)
    monkeypatch.setattr(lmms, "TokenCounts", SimpleNamespace, raising=False)
    monkeypatch.setattr(lmms.FourDThinker, "rank", 0, raising=False)


@pytest.fixture
def questions(tmp_path) -> Path:
    """Four questions about the example clips, as `fourdthinker simulate` lays out a folder."""
    folder = tmp_path / "data" / "dsr_sim"
    shutil.copytree(ROOT / "examples", folder / "videos")
    rows = json.loads((ROOT / "examples" / "examples.json").read_text())
    docs = [
        {**row, "id": str(i), "task": "example", "answer": row["options"][0], "video": f"videos/{row['video']}"}
        for i, row in enumerate(rows)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return folder


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_entry_point_leads_to_the_model(lmms_eval):
    (entry,) = PROJECT["entry-points"]["lmms_eval.models"].items()
    manifest = EntryPoint(*entry, "lmms_eval.models").load()()
    assert manifest.model_id == "fourdthinker"
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is lmms.FourDThinker
    assert lmms.FourDThinker.is_simple is False


def test_the_dev_extra_leaves_out_lmms_eval():
    dev = PROJECT["optional-dependencies"]["dev"]
    assert PROJECT["optional-dependencies"]["lmms"] and not any("lmms" in requirement for requirement in dev)


def test_messages_of_a_task_become_a_record_or_are_refused():
    video, text = {"type": "video", "url": "a.mp4"}, {"type": "text", "text": "Way?"}
    record = lmms.record_from_messages(
        [{"role": "user", "content": [video, text, {"type": "text", "text": "A. left"}]}]
    )
    assert (record.video, record.question, record.options) == ("a.mp4", "Way?\nA. left", None)
    refused = [
        [{"role": "user", "content": [text]}],
        [{"role": "user", "content": [video, video, text]}],
        [{"role": "user", "content": [video | {"start_time": 1.0}, text]}],
        [{"role": "user", "content": [video | {"url": {"path": "a.mp4", "video_start": 1}}, text]}],
        [{"role": "user", "content": [video, {"type": "image", "url": "a.png"}, text]}],
        [{"role": "system", "content": [text]}, {"role": "user", "content": [video, text]}],
    ]
    for messages in refused:
        with pytest.raises(ValueError, match="one whole video, given by its path; got"):
            lmms.record_from_messages(messages)


def test_the_task_makes_its_texts_of_a_record():
    task = load_task()
    settings = task["lmms_eval_specific_kwargs"]
    assert task["dataset_kwargs"]["data_files"] == {"test": f"{settings['folder']}/records.jsonl"}
    assert task["doc_to_visual"](DOC, settings) == ["data/dsr_sim/videos/0.mp4"]
    assert task["doc_to_text"](DOC, settings) == "Way?\nA. left\nB. right"
    assert task["doc_to_text"](DOC, settings | {"post_prompt": "\nSay."}) == "Way?\nA. left\nB. right\nSay."
    assert DOC[task["doc_to_target"]] == "right"
    assert [metric["metric"] for metric in task["metric_list"]] == ["accuracy"]


@pytest.mark.parametrize(
    ("reply", "accuracy"),
    [
        ("<think>x</think><answer>right</answer>", 1.0),
        ("<answer>B</answer>", 1.0),  # lmms-eval has removed the reasoning
        ("<answer>left</answer>", 0.0),
        ("right", 0.0),
        ("", 0.0),
    ],
)
def test_the_task_judges_as_evaluate_does(reply, accuracy):
    assert load_task()["process_results"](DOC, [reply]) == {"accuracy": accuracy}


def test_same_replies_and_verdicts_as_evaluate(lmms_eval, questions, tmp_path):
    """Four questions in two batches, as lmms-eval's evaluator would ask them."""
    task, docs = load_task(), read_rows(questions / "records.jsonl")
    settings = {**task["lmms_eval_specific_kwargs"], "folder": str(questions)}

    def messages(doc):  # as lmms-eval makes them for a task that gives a video and a text
        (video,) = task["doc_to_visual"](doc, settings)
        text = {"type": "text", "text": task["doc_to_text"](doc, settings)}
        return [{"role": "user", "content": [{"type": "video", "url": video}, text]}]

    model = lmms.FourDThinker(batch_size="3", device="cpu")
    model.task_dict = {"dsr_sim": {"test": docs}}
    kwargs = task["generation_kwargs"]
    requests = [SimpleNamespace(args=("", messages, kwargs, i, "dsr_sim", "test")) for i in range(len(docs))]
    results = model.generate_until(requests)
    evaluate(str(BUNDLED), str(questions), str(tmp_path / "out"), max_new_tokens=kwargs["max_new_tokens"])
    rows = read_rows(tmp_path / "out" / "predictions.jsonl")
    for doc, result, row in zip(docs, results, rows, strict=True):
        assert result.text == row["response"]
        assert result.token_counts.output_tokens == row["num_tokens"]
        assert result.token_counts.reasoning_tokens == row["num_latents"]
        assert task["process_results"](doc, [result.text]) == {"accuracy": float(row["correct"])}
    assert sum(row["num_latents"] for row in rows) >= 16
    requests[0].args[2]["do_sample"] = True
    with pytest.raises(ValueError, match="greedily"):
        model.generate_until(requests)


@pytest.mark.skipif(not INSTALLED, reason="needs lmms-eval, in an environment of its own: docs/evaluation.md")
def test_lmms_eval_itself_gives_the_same_answers(questions, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "fourdthinker", "--tasks", "dsr_sim"]
    command += ["--include_path", TASKS, "--batch_size", "3", "--log_samples", "--output_path", "lmms"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert "Error during evaluation" not in done.stderr, done.stderr
    (path,) = (tmp_path / "lmms").glob("*_samples_dsr_sim.jsonl")
    evaluate(str(BUNDLED), str(questions), str(tmp_path / "out"))
    rows = read_rows(tmp_path / "out" / "predictions.jsonl")
    for sample, row in zip(read_rows(path), rows, strict=True):
        assert (sample["resps"], sample["accuracy"]) == (row["response"], float(row["correct"]))
        assert sample["token_counts"] == [{"output_tokens": row["num_tokens"], "reasoning_tokens": row["num_latents"]}]


def test_a_video_that_cannot_be_read_ends_the_run_with_its_name(tmp_path):
    model = lmms.FourDThinker(device="cpu")
    asked = lmms.record_from_messages(
        [{"role": "user", "content": [{"type": "video", "url": f"{tmp_path}/gone.mp4"}]}]
    )
    with pytest.raises(ValueError, match="gone.mp4: no such file"):
        model.answer([asked], 4)
