"""`evaluate` writes the same bytes in any batch size, after any kill and in two processes, and refuses wrong input."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fourdthinker_hf.batch_inference import Reply, answer_batch, batch_inputs
from fourdthinker_hf.checkpoints import BUNDLED, load_model
from fourdthinker_hf.cli import app
from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.evaluation import evaluate, runner
from fourdthinker_hf.evaluation.probes import PROBES, Probe
from fourdthinker_hf.evaluation.runner import prediction_row, unreadable_row

ROOT = Path(__file__).resolve().parents[2]
CLIPS = sorted((ROOT / "examples").glob("sim_*.mp4"))


def record(**kwargs):
    values = {"id": "1", "question": "?", "answer": "left", "options": ["right", "left"], "task": "way"}
    return Record(**values | {"video": "x.mp4"} | kwargs)


def reply(text, images=(), margin=0.5):
    return Reply(text, 9, False, list(images), margin)


@pytest.mark.parametrize(
    ("text", "prediction", "correct", "num_images", "well_formed"),
    [
        ("<think>a <output_image> b</think><answer>left</answer>", "left", True, 1, True),
        ("<think>a</think><answer>A</answer>", "right", False, 0, True),
        ("<think>a</think><answer>A. left</answer>", None, False, 0, True),
        ("left", None, False, 0, False),
    ],
)
def test_judge(text, prediction, correct, num_images, well_formed):
    row = prediction_row(record(), reply(text))
    assert (row["prediction"], row["correct"], row["expected"], row["response"]) == (prediction, correct, "left", text)
    assert (row["num_images"], row["well_formed"]) == (num_images, well_formed)
    assert (row["reason"] is None) == (prediction is not None)
    fallback = prediction_row(record(), reply(text), likeliest=1)
    assert fallback | {key: row[key] for key in ("choice", "chosen_by", "choice_correct")} == row
    expected = ("left", "likelihood", True) if prediction is None else (prediction, "words", correct)
    assert (fallback["choice"], fallback["chosen_by"], fallback["choice_correct"]) == expected


def test_a_row_holds_numbers_without_their_last_bits():
    image = torch.full((4, 9), 2.0123)
    noise = 1 + 1e-6 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    rows = [prediction_row(record(), reply("", [im], m)) for im, m in ((image, 0.0312), (image * noise, 0.03121))]
    assert rows[0] == rows[1]
    assert (rows[0]["num_latents"], rows[0]["latent_norm"], rows[0]["margin"]) == (4, 6.0, 0.01)
    assert [prediction_row(record(), reply("", (), m))["margin"] for m in (9e-5, 1e-4, 20.0, math.inf)] == [
        0,
        1e-4,
        10,
        None,
    ]
    assert rows[0].keys() == unreadable_row(record(), "gone").keys()
    with pytest.raises(ValueError, match="not numbers"):
        prediction_row(record(), reply("", (), math.nan))


@pytest.fixture(scope="module")
def questions(clip, tmp_path_factory):
    """Nine questions of different lengths about one clip, in two tasks."""
    path = tmp_path_factory.mktemp("questions") / "records.jsonl"
    options = {"options": ["left", "right"], "answer": "left", "video": str(clip)}
    write_records(
        path, [Record(id=f"q{i}", question=f"way {'it moves ' * i}", task=f"task{i % 2}", **options) for i in range(9)]
    )
    return path


@pytest.fixture(scope="module")
def run(tiny_folder, questions):
    """`run(out, **settings)` evaluates the tiny checkpoint and returns the report and the bytes of the predictions."""

    def evaluated(out, benchmark=questions, **settings):
        settings = {"batch_size": 2, "max_new_tokens": 6} | settings
        report = evaluate(str(tiny_folder), str(benchmark), str(out), **settings)
        names = ["predictions.jsonl", "report.json", "report.md", "work.json"]
        assert sorted(path.name for path in out.iterdir()) == names
        return report, (out / "predictions.jsonl").read_bytes()

    return evaluated


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_two_runs_and_any_batch_size_give_the_same_bytes(run, whole, tmp_path):
    rows = [json.loads(line) for line in whole[1].splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(9)]
    for batch_size in (1, 2, 3, 8, 32):
        report, text = run(tmp_path / str(batch_size), batch_size=batch_size)
        assert text == whole[1] and report["table"] == whole[0]["table"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Questions for which the bundled checkpoint generates mental images."""
    path = tmp_path_factory.mktemp("simulated") / "records.jsonl"
    questions = [
        ("How does the camera move?", ["pan left", "static", "tilt down", "tilt up"]),
        ("In which direction does the red ball move?", ["to the left", "to the right", "toward the camera", "up"]),
    ]
    write_records(
        path,
        [
            Record(id=f"{video.stem}-{i}", question=question, options=options, answer=options[0], video=str(video))
            for video in CLIPS
            for i, (question, options) in enumerate(questions)
        ],
    )
    return path


@pytest.mark.parametrize("probe", ["plain", "swap"])
def test_mental_images_in_any_batch(simulated, tmp_path, probe):
    texts = []
    for batch_size in (1, 3, 8):
        out = tmp_path / str(batch_size)
        report = evaluate(str(BUNDLED), str(simulated), str(out), batch_size, probe=probe, max_new_tokens=48)
        texts.append((out / "predictions.jsonl").read_bytes())
    assert texts[0] == texts[1] == texts[2]
    latents = report["latents"]
    assert latents["mental_images"] >= 6 and latents["vectors"] == 4 * latents["mental_images"]
    assert latents["mean_norm"] > 1 and report["near_ties"] == []


@pytest.fixture(scope="module")
def bundled():
    return load_model(BUNDLED, "cpu", "float32")


@pytest.mark.parametrize("early_end", [False, True])
def test_margins_are_those_of_the_scores_that_greedy_decoding_saw(bundled, simulated, early_end, monkeypatch):
    network, processor = bundled
    monkeypatch.setattr(network.config, "latent_early_end", early_end)
    inputs = batch_inputs(processor, runner.load_benchmark(simulated)[:3])
    replies = answer_batch(network, processor, inputs, 60)
    output = network.generate(
        **inputs, max_new_tokens=60, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    best = torch.stack(output.scores, 1).topk(2).values
    for row, answer in enumerate(replies):
        differences = (best[row, : answer.num_tokens, 0] - best[row, : answer.num_tokens, 1]).tolist()
        assert answer.margin == min(differences) and 0 < answer.margin < math.inf
        written = output.sequences[row, inputs["input_ids"].shape[1] :][: answer.num_tokens]
        assert (int(written[-1]) == network.generation_config.eos_token_id) != answer.truncated


def test_next_images_are_those_of_the_next_question_in_any_batch(bundled, simulated, monkeypatch, tmp_path):
    network, processor = bundled
    records = runner.load_benchmark(simulated)
    images = [answer_batch(network, processor, batch_inputs(processor, [record]), 48)[0].images for record in records]
    given = {}

    def make_hook(model, batch, next_images):
        given.update(zip((record.id for record in batch), next_images, strict=True))
        return lambda latents, rows, block, slot: latents

    monkeypatch.setitem(PROBES, "recorded", Probe("recorded", "nothing", make_hook=make_hook, needs_next_images=True))
    evaluate(str(BUNDLED), str(simulated), str(tmp_path / "out"), 4, probe="recorded", max_new_tokens=48)
    for i, record in enumerate(records):
        expected = images[(i + 1) % len(records)]
        assert len(given[record.id]) == len(expected) > 0
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(given[record.id], expected, strict=True))


def cut_positions(text):
    """Where a kill can cut the file: at its start, inside a line, inside a batch, at its end."""
    lines = text.splitlines(keepends=True)
    ends = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
    return [0, 1, ends[1] - 1, ends[1], ends[2], ends[2] + 40, ends[5] - 1, ends[8], len(text) - 1, len(text)]


def make_killed_run(whole, out):
    """Make a folder like that of a run that was killed before its first row."""
    out.mkdir()
    settings = {name: value for name, value in whole[0]["settings"].items() if name not in ("model", "benchmark")}
    (out / "work.json").write_text(json.dumps({"command": "evaluate", **settings}))
    return out


def test_wherever_the_file_was_cut_the_run_ends_with_the_same_bytes(run, whole, tmp_path):
    for cut in cut_positions(whole[1]):
        out = make_killed_run(whole, tmp_path / str(cut))
        (out / "predictions.jsonl").write_bytes(whole[1][:cut])
        report, text = run(out)
        assert text == whole[1]
        assert report["this_call"]["asked"] == 9 - whole[1][:cut].count(b"\n")


def test_a_row_that_is_there_is_not_appended_again(tiny_folder, questions, whole, tmp_path, monkeypatch):
    out = make_killed_run(whole, tmp_path / "out")
    (out / "predictions.jsonl").write_bytes(whole[1].splitlines(keepends=True)[0])  # half of the first batch
    monkeypatch.setattr(
        runner.RunOutputs, "write_report", lambda outputs, *args: None
    )  # leaves the files as they are before they are merged
    evaluate(str(tiny_folder), str(questions), str(out), batch_size=2, max_new_tokens=6)
    assert (out / "predictions.jsonl").read_bytes() == whole[1]


def test_files_of_killed_processes_are_merged_and_a_row_in_two_of_them_counts_once(run, whole, tmp_path):
    out, lines = make_killed_run(whole, tmp_path / "out"), whole[1].splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[0:2] + lines[4:6]))
    (out / "predictions.part1").write_bytes(b"".join(lines[2:4] + lines[0:2]))
    (out / "predictions.part2").write_bytes(lines[8] + lines[7][:30])
    report, text = run(out)
    assert text == whole[1] and report["this_call"]["asked"] == 2


def test_a_finished_run_is_not_asked_again(run, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(out)
    monkeypatch.setattr(runner, "load_model", lambda *args: pytest.fail("loaded"))
    report, text = run(out)
    assert text == whole[1] and report["this_call"]["asked"] == 0 and report["table"] == whole[0]["table"]


def evaluate_command(tiny_folder, questions, out, before=""):
    call = f"evaluate({str(tiny_folder)!r}, {str(questions)!r}, {str(out)!r}, batch_size=2, max_new_tokens=6)"
    return [sys.executable, "-c", f"{before}\nfrom fourdthinker_hf.evaluation import evaluate\n{call}"]


SLOW_FSYNC = """
import os, time
fsync = os.fsync
def slow(number):
    fsync(number)
    time.sleep(0.5)
os.fsync = slow
"""


def test_a_run_that_was_killed_twice_ends_with_the_same_bytes(run, whole, tiny_folder, questions, tmp_path):
    out = tmp_path / "out"
    path = out / "predictions.jsonl"
    for target in (1, 5):
        process = subprocess.Popen(
            evaluate_command(tiny_folder, questions, out, SLOW_FSYNC),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < target:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read().decode()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = path.read_bytes()
        assert target <= kept.count(b"\n") < 9 and whole[1].startswith(kept)
    report, text = run(out)
    assert text == whole[1] and report["this_call"]["asked"] < 9 - 4


@pytest.mark.parametrize(
    ("share", "file", "least", "before"),
    [(2 / 3, "predictions.jsonl", 4, 0), (0.3, "report.md.tmp", 9, 9)],
    ids=["rows", "report"],
)
def test_disk_full(run, whole, tiny_folder, questions, tmp_path, share, file, least, before):
    """The system does not let a file grow. The error says what to do, the rows of finished batches are whole, and the
    same command finishes the run."""
    out = tmp_path / "out"
    if before:
        (make_killed_run(whole, out) / "predictions.jsonl").write_bytes(whole[1])
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({int(len(whole[1]) * share)}, -1))"
    done = subprocess.run(
        evaluate_command(tiny_folder, questions, out, limit), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        f"OSError: {out}/{file}: File too large. What was written before is safe: mend that and run the same command"
    )
    kept = (out / "predictions.jsonl").read_bytes()
    assert kept.count(b"\n") >= least and whole[1].startswith(kept)
    assert run(out)[1] == whole[1]


def test_two_processes(whole, tiny_folder, questions, tmp_path):
    out = tmp_path / "out"
    program = Path(sys.executable).parent / "fourdthinker"
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launched += ["--main_process_port", "0", "--no_python", program, "evaluate", "--model", tiny_folder]
    launched += ["--benchmark", questions, "--out", out, "--batch-size", "2", "--max-new-tokens", "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(map(str, launched), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "predictions.jsonl").read_bytes() == whole[1]
    report = json.loads((out / "report.json").read_text())
    assert report["this_call"]["num_processes"] == 2 and report["this_call"]["asked"] == 9
    assert report["table"] == whole[0]["table"]
    assert done.stdout.count("| task |") == 1


def test_another_run_is_refused_with_what_differs(run, tmp_path, questions):
    out = tmp_path / "out"
    run(out)
    before = (out / "predictions.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another run .probe was plain, now no-video; max_new_tokens was 6, now 7."):
        run(out, probe="no-video", max_new_tokens=7)
    other = tmp_path / "records.jsonl"
    other.write_text(questions.read_text().replace("moves", "goes").replace("../", f"{questions.parent.parent}/"))
    with pytest.raises(ValueError, match="questions_sha256 was"):
        run(out, benchmark=other)
    with pytest.raises(ValueError, match="dtype was float32, now bfloat16; batch_size was any, now 2"):
        run(out, dtype="bfloat16")
    (out / "work.json").unlink()
    with pytest.raises(ValueError, match="predictions.jsonl is there without a work.json"):
        run(out)
    assert (out / "predictions.jsonl").read_bytes() == before


def test_answers_about_a_video_are_not_continued_on_another(run, tmp_path, clip):
    rows = [{"id": str(i), "question": "?", "options": ["a", "b"], "answer": "A", "video": "c.mp4"} for i in range(3)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(clip, tmp_path / "c.mp4")
    _, text = run(tmp_path / "out", benchmark=tmp_path)
    shutil.copy(CLIPS[0], tmp_path / "c.mp4")
    (tmp_path / "out" / "predictions.jsonl").write_bytes(text.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="answers about another video than .*c.mp4 .question '0'., which has changed"):
        run(tmp_path / "out", benchmark=tmp_path)


def test_a_record_whose_video_was_replaced_is_left_out_and_named(run, tmp_path, clip):
    shutil.copy(clip, tmp_path / "c.mp4")
    source = {"video_sha256": hashlib.sha256(clip.read_bytes()).hexdigest()}
    values = {"options": ["a", "b"], "answer": "a", "video": str(tmp_path / "c.mp4")}
    write_records(tmp_path / "records.jsonl", [Record(id=i, question="?", source=source, **values) for i in "xy"])
    assert run(tmp_path / "out", benchmark=tmp_path)[0]["left_out"] == []
    shutil.copy(CLIPS[0], tmp_path / "c.mp4")
    with pytest.raises(ValueError, match="line 1: question 'x' cannot be asked: .*c.mp4: this is not the video that"):
        run(tmp_path / "other", benchmark=tmp_path)


@pytest.mark.parametrize("probe", ["no-video", "grey-video", "zeros", "suppressed"])
def test_probes_run(run, tmp_path, probe):
    report, _ = run(tmp_path / "out", probe=probe)
    assert report["settings"]["probe"] == probe and report["table"]["pooled"]["num"] == 9


@pytest.fixture
def broken(tmp_path, clip):
    """Five questions. The video of the second is missing, that of the fourth is cut in the middle."""
    for name in ("a", "b", "c"):
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    rows = [
        {"id": name, "question": "way", "options": ["left", "right"], "answer": "A", "video": f"{name}.mp4"}
        for name in ("a", "gone", "b", "cut", "c")
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("probe", ["plain", "swap"])
def test_unreadable_videos_count_as_wrong_and_are_listed(run, broken, tmp_path, probe):
    report, text = run(tmp_path / "out", benchmark=broken, probe=probe)
    rows = {row["id"]: row for row in map(json.loads, text.splitlines())}
    assert list(rows) == ["a", "gone", "b", "cut", "c"]
    for name in ("gone", "cut"):
        row = rows[name]
        assert (row["prediction"], row["correct"], row["response"]) == (None, False, None)
        assert f"{name}.mp4" in row["reason"]
    assert report["unread"].keys() == {"gone", "cut"} and report["table"]["pooled"]["num"] == 5
    assert "counted as wrong: 2, gone, cut." in (tmp_path / "out" / "report.md").read_text()
    for batch_size in (1, 5):
        assert run(tmp_path / str(batch_size), benchmark=broken, probe=probe, batch_size=batch_size)[1] == text


def test_bad_records_are_left_out_and_named_and_the_exit_status_tells(tiny_folder, broken, tmp_path):
    """As in a file from a spreadsheet: a byte order mark, a broken line, one option, a video that is too narrow."""
    shutil.copy(ROOT / "tests/video_inputs/wide_205to1.mp4", tmp_path / "gone.mp4")
    lines = broken.read_text().splitlines()
    bad = ["{", json.dumps({**json.loads(lines[0]), "id": "x", "options": ["left"]})]
    broken.write_text("\n".join([lines[0], *bad, *lines[1:3]]), encoding="utf-8-sig")
    array = tmp_path / "records.json"
    array.write_text("[\n" + ",\n".join([lines[0], *bad, *lines[1:3]]) + "\n]", encoding="utf-8-sig")
    for path, first in ((broken, 2), (array, 3)):
        arguments = ["--benchmark", path, "--out", tmp_path / path.suffix[1:], "--model", tiny_folder]
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--max-new-tokens", "6"])
        assert result.exit_code == 3 and "| task |" in result.stdout, result.stderr
        assert "3 left out or failed" in result.stderr
        for number, reason in ((first, "Expecting"), (first + 1, "question 'x' cannot be asked: it has no options")):
            assert f"{path}, line {number}: {reason}" in result.stderr
        reason = f"the video could not be read: {tmp_path}/gone.mp4: is 4096 x 20"
        assert f"question 'gone' counts as wrong: {path}, line {first + 2}: {reason}" in result.stderr
        report = json.loads((tmp_path / path.suffix[1:] / "report.json").read_text())
        assert len(report["left_out"]) == 2 and report["table"]["pooled"]["num"] == 3
    with pytest.raises(ValueError, match="line 2: Expecting"):
        evaluate(str(tiny_folder), str(broken), str(tmp_path / "out"), missing="refuse")


def test_a_video_damaged_in_its_middle_is_one_wrong_answer_with_the_time(run, broken, tmp_path, clip):
    data = bytearray(clip.read_bytes())
    middle = slice(2 * len(data) // 5, 3 * len(data) // 5)
    data[middle] = bytes(len(data[middle]))
    (tmp_path / "gone.mp4").write_bytes(data)
    shutil.copy(clip, tmp_path / "cut.mp4")
    report, text = run(tmp_path / "out", benchmark=broken)
    (reason,) = report["unread"].values()
    assert "gone.mp4: is truncated or damaged at 1.250 s" in reason and text.count(b"\n") == 5


def test_a_video_that_came_later_is_asked_about_by_the_next_call(run, broken, tmp_path, clip):
    out = tmp_path / "out"
    run(out, benchmark=broken)
    shutil.copy(clip, tmp_path / "gone.mp4")
    report, text = run(out, benchmark=broken)
    assert report["this_call"]["asked"] == 2  # also the question whose video is cut, because its file exists
    assert report["unread"].keys() == {"cut"}
    assert run(tmp_path / "fresh", benchmark=broken)[1] == text


def test_missing_videos_refused_before_anything_is_loaded(run, broken, tmp_path, clip, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(runner, "load_model", lambda *args: pytest.fail("loaded"))
        with pytest.raises(ValueError, match="^1 files of the benchmark are missing .*gone.mp4$"):
            run(tmp_path / "out", benchmark=broken, missing="refuse")
    assert not (tmp_path / "out").exists()
    shutil.copy(clip, tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="cut.mp4"):
        run(tmp_path / "out", benchmark=broken, missing="refuse")
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes().count(b"\n") == 2
    shutil.copy(clip, tmp_path / "cut.mp4")
    report, text = run(tmp_path / "out", benchmark=broken, missing="refuse")
    assert report["unread"] == {} and text.count(b"\n") == 5 and report["this_call"]["asked"] == 3


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(runner._prefetch(lambda i: 2 * i, [3, 1, 2])) == [6, 2, 4]
    values = runner._prefetch(lambda i: 1 // i, [1, 0])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_prefetch_gives_the_same_bytes(run, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        runner, "_prepare_batches", lambda answerer, batches: runner._prefetch(answerer.prepare, batches)
    )
    assert run(tmp_path / "out")[1] == whole[1]


def test_a_video_is_opened_once_a_batch(run, whole, tmp_path, monkeypatch):
    opened = []
    open_clip = runner.open_clip
    monkeypatch.setattr(runner, "open_clip", lambda *args: opened.append(args[1].id) or open_clip(*args))
    assert run(tmp_path / "out", batch_size=4)[1] == whole[1]
    assert opened == ["q0", "q4", "q8"]


def test_questions_about_frames(run, tmp_path):
    for i in range(4):
        Image.fromarray(np.full((112, 112, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    row = {"id": "f", "question": "way", "options": ["left", "right"], "answer": "A", "timestamps": [0, 0.5, 1, 1.5]}
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(row | {"frames": [f"{i}.png" for i in range(4)]}) + "\n")
    report, _ = run(tmp_path / "out", benchmark=path)
    assert report["unread"] == {} and report["table"]["questions"]["num"] == 1
    (tmp_path / "2.png").write_text("no picture")
    report, _ = run(tmp_path / "again", benchmark=path)
    assert "2.png" in report["unread"]["f"]


def test_a_question_that_holds_special_tokens_is_only_text(run, tmp_path, clip):
    path = tmp_path / "records.jsonl"
    text = "<|im_end|> <|video_pad|> <|latent_pad|>?"
    write_records(path, [Record("1", text, "<|latent_start|>", options=["<|latent_start|>", "b"], video=str(clip))])
    assert run(tmp_path / "out", benchmark=path)[0]["unread"] == {}


def test_what_is_no_checkpoint(tiny_folder, questions, tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            evaluate(str(model), str(questions), str(tmp_path / "out"))

    model = tmp_path / "model"
    refused("model: there is no such folder, and a name on the Hub is OWNER/NAME")
    shutil.copytree(tiny_folder, model)
    (model / "processor_config.json").unlink()
    refused("processor_config.json: it cannot be loaded")
    (model / "config.json").write_text("{}")
    shutil.rmtree(tmp_path / "out")
    refused("no latent_token_id")
    (model / "config.json").unlink()
    refused("no checkpoint in its uppermost folder, because config.json is missing")


def test_unknown_settings(tiny_folder, questions, tmp_path):
    for setting, value in (("probe", "blue"), ("dtype", "float16"), ("missing", "skip")):
        with pytest.raises(ValueError, match=f"{setting} must be one of .*, got '{value}'"):
            evaluate(str(tiny_folder), str(questions), str(tmp_path / "out"), **{setting: value})
