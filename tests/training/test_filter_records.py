"""Filtering: what is kept, and that a killed pass leaves what a whole one does."""

import json

import pytest
from typer.testing import CliRunner

from fourdthinker_hf.cli import app
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.training import filter_records


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
    """Sampled for real, then reread: the number of the question is that of its right replies; the texts are kept."""
    seen, sample = [], filter_records._sample_replies

    def told(network, processor, rows, samples, *args):
        texts = sample(network, processor, rows, samples, *args)
        seen.append(texts)
        right = [int(row["id"]) for row in rows]
        return [["<answer>B</answer>"] * count + ["<answer>A</answer>"] * (samples - count) for count in right]

    monkeypatch.setattr(filter_records, "_sample_replies", told)
    return seen


def run(tiny_folder, questions, out, *more):
    settings = ["--model", str(tiny_folder), "--samples", "4", "--batch-size", "2", "--max-new-tokens", "6", *more]
    return CliRunner().invoke(app, ["filter", str(questions), "--out", str(out), *settings])


def test_questions_that_are_sometimes_right_are_kept_and_a_killed_pass_goes_on(
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
    run(tiny_folder, questions, killed)
    assert killed.with_suffix(".counts.jsonl").read_text().splitlines()[0] == counts.splitlines()[0]
    assert killed.read_bytes() == whole.read_bytes()
    assert replies[3:] == replies[1:3]  # the half batch again, then the last: the same words
    run(tiny_folder, questions, killed)
    assert len(replies) == 5

    other = run(tiny_folder, questions, killed, "--seed", "1")
    assert other.exit_code == 2 and "holds another filter run with different seed" in other.output
