"""Intervals against published values; the runner: the same bytes again, in any batch, after any kill, in two
processes, and bad input; the test of the maps on cases with known answers."""

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

from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.data.simulation.generation import simulate
from fourdthinker_hf.evaluation import accuracy_table, evaluate, runner, wilson_interval
from fourdthinker_hf.evaluation.maps import _bootstrap, _compare, map_test
from fourdthinker_hf.evaluation.probes import PROBES, Probe
from fourdthinker_hf.evaluation.report import format_table
from fourdthinker_hf.evaluation.runner import prediction_row, unreadable_row
from fourdthinker_hf.hub.files import BUNDLED, load_model
from fourdthinker_hf.inference import Reply, answer_batch, batch_inputs

ROOT = Path(__file__).resolve().parents[2]
CLIPS = sorted((ROOT / "examples").glob("sim_*.mp4"))


def test_wilson_interval():
    # 81 of 263: the example of Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


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


def test_table_has_each_task_both_means_and_chance():
    rows = [
        prediction_row(record(), reply(f"<think>x</think><answer>{text}</answer>"))
        for text in ("left", "left", "right")
    ]
    rows[2] |= {"task": "other", "num_options": 4}
    table = accuracy_table(rows)
    assert [(name, row["correct"], row["num"]) for name, row in table.items()] == [
        ("other", 0, 1),
        ("way", 2, 2),
        ("macro", 2, 3),
        ("pooled", 2, 3),
    ]
    macro, pooled = table["macro"], table["pooled"]
    assert (macro["accuracy"], pooled["accuracy"]) == (0.5, pytest.approx(2 / 3))
    assert (macro["chance"], pooled["chance"]) == (pytest.approx(0.375), pytest.approx(1.25 / 3))
    # Half the joined distances: from 1 down to way's low, from 0 up to other's high; the other two are 0.
    assert (macro["low"], macro["high"]) == (
        pytest.approx(0.5 - (1 - table["way"]["low"]) / 2),
        pytest.approx(0.5 + table["other"]["high"] / 2),
    )
    assert [line.split(" | ")[0] for line in format_table(table).splitlines()[2:]] == [
        "| other",
        "| way",
        "| macro (mean of tasks)",
        "| micro (pooled)",
    ]


@pytest.fixture(scope="module")
def questions(clip, tmp_path_factory):
    """Nine questions of two tasks about the shared clip, of different lengths."""
    path = tmp_path_factory.mktemp("questions") / "records.jsonl"
    options = {"options": ["left", "right"], "answer": "left", "video": str(clip)}
    write_records(
        path, [Record(id=f"q{i}", question=f"way {'it moves ' * i}", task=f"task{i % 2}", **options) for i in range(9)]
    )
    return path


@pytest.fixture(scope="module")
def run(tiny_folder, questions):
    """`run(out, **settings)` evaluates the tiny checkpoint; returns report and bytes."""

    def evaluated(out, benchmark=questions, **settings):
        settings = {"batch_size": 2, "max_new_tokens": 6} | settings
        report = evaluate(str(tiny_folder), str(benchmark), str(out), **settings)
        assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "report.json", "report.md"]
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
    """Questions that the bundled checkpoint pictures answers to."""
    path = tmp_path_factory.mktemp("simulated") / "records.jsonl"
    asked = [
        ("How does the camera move?", ["pan left", "static", "tilt down", "tilt up"]),
        ("In which direction does the red ball move?", ["to the left", "to the right", "toward the camera", "up"]),
    ]
    write_records(
        path,
        [
            Record(id=f"{video.stem}-{i}", question=question, options=options, answer=options[0], video=str(video))
            for video in CLIPS
            for i, (question, options) in enumerate(asked)
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


def test_donors_are_the_next_questions_images_whatever_the_batch(bundled, simulated, monkeypatch, tmp_path):
    network, processor = bundled
    records = runner.load_benchmark(simulated)
    images = [answer_batch(network, processor, batch_inputs(processor, [record]), 48)[0].images for record in records]
    given = {}

    def hook(model, batch, donors):
        given.update(zip((record.id for record in batch), donors, strict=True))
        return lambda latents, rows, block, slot: latents

    monkeypatch.setitem(PROBES, "look", Probe("look", "nothing", hook=hook, needs_donors=True))
    evaluate(str(BUNDLED), str(simulated), str(tmp_path / "out"), 4, probe="look", max_new_tokens=48)
    for i, asked in enumerate(records):
        expected = images[(i + 1) % len(records)]
        assert len(given[asked.id]) == len(expected) > 0
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(given[asked.id], expected, strict=True))


def cuts(text):
    """What a kill can leave: nothing, part of a line, whole lines of part of a batch, everything."""
    lines = text.splitlines(keepends=True)
    ends = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
    return [0, 1, ends[1] - 1, ends[1], ends[2], ends[2] + 40, ends[5] - 1, ends[8], len(text) - 1, len(text)]


def begun(whole, out):
    """A folder as a run leaves it that was killed before its first row."""
    out.mkdir()
    (out / "report.json").write_text(json.dumps({"settings": whole[0]["settings"]}))
    return out


def test_wherever_the_file_was_cut_the_run_ends_with_the_same_bytes(run, whole, tmp_path):
    for cut in cuts(whole[1]):
        out = begun(whole, tmp_path / str(cut))
        (out / "predictions.jsonl").write_bytes(whole[1][:cut])
        report, text = run(out)
        assert text == whole[1]
        assert report["this_call"]["asked"] == 9 - whole[1][:cut].count(b"\n")


def test_a_row_that_is_there_is_not_appended_again(tiny_folder, questions, whole, tmp_path, monkeypatch):
    out = begun(whole, tmp_path / "out")
    (out / "predictions.jsonl").write_bytes(whole[1].splitlines(keepends=True)[0])  # half of the first batch
    monkeypatch.setattr(runner.Outputs, "finish", lambda outputs, this_call: None)  # before anything is joined
    evaluate(str(tiny_folder), str(questions), str(out), batch_size=2, max_new_tokens=6)
    assert (out / "predictions.jsonl").read_bytes() == whole[1]


def test_parts_of_killed_processes_are_joined_and_rows_in_two_of_them_count_once(run, whole, tmp_path):
    out, lines = begun(whole, tmp_path / "out"), whole[1].splitlines(keepends=True)
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


def command(tiny_folder, questions, out, before=""):
    call = f"evaluate({str(tiny_folder)!r}, {str(questions)!r}, {str(out)!r}, batch_size=2, max_new_tokens=6)"
    return [sys.executable, "-c", f"{before}\nfrom fourdthinker_hf.evaluation import evaluate\n{call}"]


SLOWLY = """
import os, time
fsync = os.fsync
def slow(number):
    fsync(number)
    time.sleep(0.5)
os.fsync = slow
"""


def test_killed_twice_at_any_moment(run, whole, tiny_folder, questions, tmp_path):
    out = tmp_path / "out"
    path = out / "predictions.jsonl"
    for target in (1, 5):
        process = subprocess.Popen(
            command(tiny_folder, questions, out, SLOWLY), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
    ("room", "file", "least", "before"),
    [(2 / 3, "predictions.jsonl", 4, 0), (0.5, "report.md.tmp", 9, 9)],
    ids=["rows", "report"],
)
def test_disk_full(run, whole, tiny_folder, questions, tmp_path, room, file, least, before):
    """The system refuses to let a file grow: one plain error, rows of finished batches whole, then all of them."""
    out = tmp_path / "out"
    if before:
        (begun(whole, out) / "predictions.jsonl").write_bytes(whole[1])
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({int(len(whole[1]) * room)}, -1))"
    done = subprocess.run(command(tiny_folder, questions, out, limit), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        f"OSError: {out}/{file}: File too large. The rows written before are safe: make room and run the same command"
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
    (out / "report.json").unlink()
    with pytest.raises(ValueError, match="but no report.json"):
        run(out)
    assert (out / "predictions.jsonl").read_bytes() == before


@pytest.mark.parametrize("probe", ["no-video", "grey-video", "zeros", "suppressed"])
def test_probes_run(run, tmp_path, probe):
    report, _ = run(tmp_path / "out", probe=probe)
    assert report["settings"]["probe"] == probe and report["table"]["pooled"]["num"] == 9


@pytest.fixture
def broken(tmp_path, clip):
    """Five questions: the second's video is not there, the fourth's is cut in the middle."""
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


def test_a_video_damaged_in_its_middle_is_one_wrong_answer_with_the_frame(run, broken, tmp_path, clip):
    data = bytearray(clip.read_bytes())
    middle = slice(2 * len(data) // 5, 3 * len(data) // 5)
    data[middle] = bytes(len(data[middle]))
    (tmp_path / "gone.mp4").write_bytes(data)
    shutil.copy(clip, tmp_path / "cut.mp4")
    report, text = run(tmp_path / "out", benchmark=broken)
    (reason,) = report["unread"].values()
    assert "gone.mp4: frame" in reason and "cannot be decoded" in reason and text.count(b"\n") == 5


def test_a_video_that_came_later_is_asked_about_by_the_next_call(run, broken, tmp_path, clip):
    out = tmp_path / "out"
    run(out, benchmark=broken)
    shutil.copy(clip, tmp_path / "gone.mp4")
    report, text = run(out, benchmark=broken)
    assert report["this_call"]["asked"] == 2  # the one that was cut, too: its file is there
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


def test_preparing_one_ahead_keeps_the_order_and_passes_errors_on():
    assert list(runner._one_ahead(lambda i: 2 * i, [3, 1, 2])) == [6, 2, 4]
    ahead = runner._one_ahead(lambda i: 1 // i, [1, 0])
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_preparing_one_ahead_gives_the_same_bytes(run, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_prepared", lambda asked, batches: runner._one_ahead(asked.prepare, batches))
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
    refused("no such folder, and no Hub repository")
    shutil.copytree(tiny_folder, model)
    (model / "processor_config.json").unlink()
    refused("holds no processor that can be loaded")
    (model / "config.json").write_text("{}")
    shutil.rmtree(tmp_path / "out")
    refused("no latent_token_id")
    (model / "config.json").unlink()
    refused("no checkpoint there")


def test_unknown_settings(tiny_folder, questions, tmp_path):
    for setting, value in (("probe", "blue"), ("dtype", "float16"), ("missing", "skip")):
        with pytest.raises(ValueError, match=f"{setting} must be one of .*, got '{value}'"):
            evaluate(str(tiny_folder), str(questions), str(tmp_path / "out"), **{setting: value})


def map_case(rng, number=0):
    """Two mental images a clip, each of one cell of random features."""
    features = torch.from_numpy(rng.normal(size=(4, 3, 3, 16))).float()
    step, row, column = rng.integers(4), rng.integers(3), rng.integers(3)
    cover = np.zeros((4, 3, 3), np.float32)
    cover[step, row, column] = 1
    return {
        "clip": f"clip{number // 2}",
        "latents": features[step, row, column][None],
        "features": features,
        "cover": cover,
        "step": int(step),
        "moves": True,
    }


def test_maps_that_point_at_the_object_beat_shuffled_ones_and_noise_does_not():
    rng = np.random.default_rng(0)
    cases = [map_case(rng, number) for number in range(100)]
    pointed = _compare(cases, None, np.random.default_rng(1))
    assert pointed["best_step"]["own"] == pointed["near_step"]["own"] == 1.0 and pointed["mass"]["low"] > 0
    assert pointed["mass"]["chance"] == pytest.approx(1 / 36) and pointed["best_step"]["chance"] == 0.25
    steps = [case["step"] for case in cases]
    assert pointed["near_step"]["chance"] == pytest.approx(np.mean([0.5 if s in (0, 3) else 0.75 for s in steps]))
    for case in cases:
        case["latents"] = torch.from_numpy(rng.normal(size=(1, 16))).float()
    noise = _compare(cases, None, np.random.default_rng(1))
    assert all(noise[name]["low"] < 0 < noise[name]["high"] for name in ("mass", "best_step", "near_step"))


@pytest.mark.parametrize(("target", "expected"), [(2, (1, 1)), (1, (0, 1)), (3, (0, 1)), (0, (0, 0))])
def test_near_is_one_step_before_or_after(target, expected):
    """Latents of the cell of step 2, whatever step they should picture; those of what stays in place do not count."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(4, 3, 3, 16))).float()
    case = {"latents": features[2, 1, 1][None], "features": features, "cover": np.ones((4, 3, 3), np.float32)}
    cases = [{**case, "clip": str(i), "step": target, "moves": i < 3} for i in range(4)]
    cases[3]["step"] = 2
    found = _compare(cases, None, rng)
    assert (found["best_step"]["own"], found["near_step"]["own"], found["num_moving"]) == (*expected, 3)
    assert found["mass"]["own"] == found["mass"]["shuffled"] == found["mass"]["chance"] == 1
    assert found["near_step"]["gain"] == found["near_step"]["low"] == found["near_step"]["high"] == 0


def test_the_bootstrap_draws_clips_with_all_their_images():
    rng = np.random.default_rng(0)
    values = np.repeat([0.0, 1.0], 50)
    low, high = _bootstrap(values, np.repeat(["a", "b"], 50), rng)  # two clips: one, the other, or both
    assert (low, high) == (0, 1)
    low, high = _bootstrap(values, np.arange(100), rng)
    assert 0.38 < low < 0.43 < 0.57 < high < 0.62


def test_maps_of_simulated_clips(tmp_path):
    """The whole way, of the model's latents and of the true targets'."""
    benchmark = simulate(4, 5, tmp_path / "data")
    for source in ("model", "targets"):
        result = map_test(str(BUNDLED), str(benchmark), str(tmp_path / source), 4, source)
        assert result == {
            k: v
            for k, v in json.loads((tmp_path / source / "maps.json").read_text()).items()
            if k not in ("model", "benchmark")
        }
        assert 4 <= result["num"] <= 6 and result["best_step"]["chance"] == 0.25
        assert 0.02 < result["mass"]["chance"] < 0.1 and result["mass"]["own"] > result["mass"]["chance"]
