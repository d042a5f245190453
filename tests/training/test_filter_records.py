"""Filtering: which questions are kept, that a killed run gives the result of a whole one, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fourdthinker_hf.cli import app
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.training import filter_records

WIDE = Path(__file__).parents[1] / "video_inputs/wide_205to1.mp4"


@pytest.fixture
def questions(tmp_path, clip):
    lines = [
        {
            "id": str(i),
            "video": str(clip),
            "question": "which" + " now" * i,
            "options": ["left", "right"],
            "answer": "right",
        }
        for i in range(5)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def replies(monkeypatch):
    """The texts that were sampled. In their place, question number n gets n right replies."""
    sampled, sample = [], filter_records._sample_replies

    def replace(network, processor, rows, samples, *args):
        sampled.append(sample(network, processor, rows, samples, *args))
        right = [int(row["id"]) for row in rows]
        return [["<answer>B</answer>"] * count + ["<answer>A</answer>"] * (samples - count) for count in right]

    monkeypatch.setattr(filter_records, "_sample_replies", replace)
    return sampled


def run(tiny_folder, questions, out, *more):
    settings = ["--model", str(tiny_folder), "--samples", "4", "--batch-size", "2", "--max-new-tokens", "6", *more]
    return CliRunner().invoke(app, ["filter", str(questions), "--out", str(out), *settings])


def test_questions_that_are_sometimes_right_are_kept_and_a_killed_run_continues(
    tiny_folder, questions, tmp_path, replies
):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    result = run(tiny_folder, questions, whole)
    assert result.output.strip().endswith("whole.jsonl: 3 of 5 records; 1 are always right, 1 never")
    assert [record.id for record in read_records(whole)] == ["1", "2", "3"]
    assert [len(batch) for batch in replies] == [2, 2, 1] and all(len(texts) == 4 for texts in replies[0])
    assert len(set(replies[0][0])) > 1  # sampled

    counts = whole.with_suffix(".counts.jsonl").read_text()
    killed.with_suffix(".counts.jsonl").write_text(counts[: counts.index('{"record": 3') + 9])
    shutil.copy(whole.with_suffix(".work.json"), killed.with_suffix(".work.json"))
    run(tiny_folder, questions, killed)
    assert killed.with_suffix(".counts.jsonl").read_text() == counts
    assert killed.read_bytes() == whole.read_bytes()
    assert replies[3:] == replies[1:3]  # the interrupted batch again, then the last one: the same texts
    run(tiny_folder, questions, killed)
    assert len(replies) == 5

    other = run(tiny_folder, questions, killed, "--seed", "1")
    assert other.exit_code == 2 and "killed.work.json holds another run (seed was 0, now 1)" in other.stderr


def test_records_of_another_file_are_not_continued(tiny_folder, questions, tmp_path, replies):
    """As many records, but other ones: other words, or another video of the same name."""
    assert run(tiny_folder, questions, tmp_path / "x.jsonl").exit_code == 0
    before = (tmp_path / "x.jsonl").read_bytes()
    others = tmp_path / "others.jsonl"
    others.write_text(questions.read_text().replace("which", "what"))
    refused = run(tiny_folder, others, tmp_path / "x.jsonl")
    assert refused.exit_code == 2 and "x.work.json holds another run (records_sha256 was" in refused.stderr
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    shutil.copy(Path(rows[0]["video"]), tmp_path / "clip.mp4")
    with (tmp_path / "clip.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    others.write_text("".join(json.dumps(row | {"video": "clip.mp4"}) + "\n" for row in rows))
    assert run(tiny_folder, others, tmp_path / "x.jsonl").exit_code == 2
    refused = run(tiny_folder, questions, questions)
    assert refused.exit_code == 2 and "questions.jsonl is there without a questions.work.json" in refused.stderr
    assert (tmp_path / "x.jsonl").read_bytes() == before and len(replies) == 3


def test_bad_records_are_left_out_and_named_and_the_others_are_filtered(
    tiny_folder, questions, clip, tmp_path, replies
):
    shutil.copy(WIDE, tmp_path)
    row = {"id": "9", "question": "q", "options": ["left", "right"], "answer": "left"}
    bad = [{**row, "video": WIDE.name}, {**row, "video": "gone.mp4"}, {**row, "options": ["left"], "video": WIDE.name}]
    lines = questions.read_text().splitlines()
    questions.write_bytes(b"\xef\xbb\xbf" + "\n".join([lines[0], "{", *map(json.dumps, bad), *lines[1:]]).encode())
    for _ in range(2):  # the second time nothing is sampled
        result = run(tiny_folder, questions, tmp_path / "out.jsonl")
        assert result.exit_code == 3
        assert "3 of 9 records; 1 are always right, 1 never, 4 cannot be used" in result.stdout
        for number, reason in (
            (2, "Expecting"),
            (3, "wide_205to1.mp4: is 4096 x 20"),
            (4, "missing"),
            (5, "1 options"),
        ):
            assert re.search(rf"questions\.jsonl, line {number}: .*{reason}", result.stderr)
    assert [record.id for record in read_records(tmp_path / "out.jsonl")] == ["1", "2", "3"]
    assert [len(batch) for batch in replies] == [1, 2, 2]
    shutil.copy(clip, tmp_path / WIDE.name)  # now its video can be read: its batch is asked again
    result = run(tiny_folder, questions, tmp_path / "out.jsonl")
    assert "3 of 9 records; 1 are always right, 2 never, 3 cannot be used" in result.stdout
    assert [len(batch) for batch in replies] == [1, 2, 2, 2]
    questions.write_text("{")
    result = run(tiny_folder, questions, tmp_path / "other.jsonl")
    assert result.exit_code == 2 and "has no record that can be used" in result.stderr


def test_a_model_with_forget_video_is_refused_before_anything_is_loaded(tiny_folder, questions, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "forgets")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"forget_video": True}))
    for name in ("RecordFiles", "model_hash", "load_model"):
        monkeypatch.setattr(filter_records, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    result = run(folder, questions, tmp_path / "out.jsonl")
    assert result.exit_code == 2 and "config.json has forget_video" in result.output
    assert not list(tmp_path.glob("out*"))
