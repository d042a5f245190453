"""Records: three schemas in, one out; nothing broken gets through unnoticed."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data.records import Record, RecordError, read_records, write_records
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE


def put(folder: Path, *rows) -> Path:
    for name in ("a.mp4", "f0.png", "f1.png", "t0.png"):
        (folder / name).touch()
    path = folder / "records.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


OURS = {"id": "1", "video": "a.mp4", "question": "q?", "options": ["x", "y"], "answer": "y"}


def test_ours_gives_absolute_paths(tmp_path):
    row = {**OURS, "reasoning": f"so {OUTPUT_IMAGE} y", "imagery": ["t0.png"], "task": "t", "source": {"seed": 1}}
    (record,) = read_records(put(tmp_path, row))
    assert record.video == str(tmp_path / "a.mp4") and record.imagery == [str(tmp_path / "t0.png")]
    assert (record.options, record.answer, record.task, record.source) == (["x", "y"], "y", "t", {"seed": 1})


def test_frames_with_timestamps(tmp_path):
    row = {"id": 1, "frames": ["f0.png", "f1.png"], "timestamps": [0, 0.5], "question": "q?", "answer": "free text"}
    (record,) = read_records(put(tmp_path, row))
    assert record.id == "1" and record.video is None and record.options is None
    assert record.frames == [str(tmp_path / "f0.png"), str(tmp_path / "f1.png")] and record.timestamps == [0, 0.5]


def test_published_dift(tmp_path):
    text = f"<think>it moves {OUTPUT_IMAGE} left.</think>\n<answer>A. left</answer>"
    row = {"id": "7", "text_input": "q?", "text_output": text, "image_input": ["f0.png"], "image_output": ["t0.png"]}
    (record,) = read_records(put(tmp_path, row))
    assert (record.id, record.question, record.answer) == ("7", "q?", "A. left")
    assert record.reasoning == f"it moves {OUTPUT_IMAGE} left."
    assert record.frames == [str(tmp_path / "f0.png")] and record.imagery == [str(tmp_path / "t0.png")]


@pytest.mark.parametrize("where", [{"video_path": "a.mp4"}, {"frame_paths": ["f0.png", "f1.png"]}])
def test_published_rl_answer_letter_becomes_its_text(tmp_path, where):
    row = {"Question": "q?", "A": "up", "B": "down", "C": "left", "D": "right", "Correct": "C", **where}
    (record,) = read_records(put(tmp_path, row))
    assert record.options == ["up", "down", "left", "right"] and record.answer == "left"


BAD = [
    ({**OURS, "reasoning": f"{OUTPUT_IMAGE} {OUTPUT_IMAGE}", "imagery": ["t0.png"]}, "2 <output_image> .* 1 images"),
    ({**OURS, "imagery": ["t0.png"]}, "0 <output_image> .* 1 images"),
    ({**OURS, "video": "gone.mp4"}, r"missing file .*gone\.mp4"),
    ({**OURS, "reasoning": OUTPUT_IMAGE, "imagery": ["gone.png"]}, r"missing file .*gone\.png"),
    ({**OURS, "answer": "z"}, "'z' is not among the options"),
    ({**OURS, "frames": ["f0.png"]}, "either a video or frames"),
    ({key: OURS[key] for key in ("id", "question", "answer", "options")}, "either a video or frames"),
    (
        {"id": "1", "frames": ["f0.png"], "timestamps": [0, 1], "question": "q", "answer": "a"},
        "2 timestamps for 1 frames",
    ),
    ({key: OURS[key] for key in ("id", "video", "question")}, "missing field 'answer'"),
    ({"id": "1", "text_input": "q", "text_output": "no tags", "image_input": [], "image_output": []}, "text_output"),
    ("[1]", "not a JSON object"),
    ("{", "Expecting"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_records_name_file_line_and_reason(tmp_path, row, reason):
    with pytest.raises(RecordError, match=rf"records\.jsonl, line 2: .*{reason}"):
        read_records(put(tmp_path, OURS, row))


def test_skip_bad_reports_how_many_and_why(tmp_path, caplog):
    records = read_records(
        put(tmp_path, OURS, {**OURS, "answer": "z"}, OURS, {**OURS, "video": "gone.mp4"}), skip_bad=True
    )
    assert len(records) == 2
    assert "skipped 2 of 4" in caplog.text and "line 2: the answer 'z'" in caplog.text and "gone.mp4" in caplog.text


words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_written_records_read_back_equal(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(folder)
        images = data.draw(st.integers(0, 3))
        options = data.draw(st.none() | st.lists(words, min_size=2, max_size=4, unique=True))
        as_frames = data.draw(st.booleans())
        record = Record(
            id=data.draw(words),
            question=data.draw(words),
            answer=data.draw(words if options is None else st.sampled_from(options)),
            options=options,
            task=data.draw(st.none() | words),
            reasoning=data.draw(words) + OUTPUT_IMAGE * images,
            imagery=[str(folder / "t0.png")] * images,
            video=None if as_frames else str(folder / "a.mp4"),
            frames=[str(folder / "f0.png"), str(folder / "f1.png")] if as_frames else None,
            timestamps=[0.0, data.draw(st.floats(0, 1e6))] if as_frames else None,
            source=data.draw(st.none() | st.dictionaries(words, st.integers(), min_size=1)),
        )
        write_records(folder / "out.jsonl", [record, record])
        assert read_records(folder / "out.jsonl") == [record, record]
        assert sorted(path.name for path in folder.iterdir() if path.suffix != ".png") == [
            "a.mp4",
            "out.jsonl",
            "records.jsonl",
        ]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = put(tmp_path, OURS)
    before = path.read_text()
    broken = Record(id="2", question="q", answer="a", video=str(tmp_path / "a.mp4"), source={"x": object()})
    with pytest.raises(TypeError):
        write_records(path, [*read_records(path), broken])
    assert path.read_text() == before
