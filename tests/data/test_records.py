"""Records: three schemas are read, one is written, and every bad record is reported."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourdthinker_hf.data import records
from fourdthinker_hf.data.records import Record, RecordError, RecordFiles, open_frames, read_records, write_records
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE


def write_rows(folder: Path, *rows) -> Path:
    for name in ("a.mp4", "f0.png", "f1.png", "t0.png"):
        (folder / name).touch()
    path = folder / "records.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


OURS = {"id": "1", "video": "a.mp4", "question": "q?", "options": ["x", "y"], "answer": "y"}


def test_ours_gives_absolute_paths(tmp_path):
    row = {**OURS, "reasoning": f"so {OUTPUT_IMAGE} y", "imagery": ["t0.png"], "task": "t", "source": {"seed": 1}}
    (record,) = read_records(write_rows(tmp_path, row))
    assert record.video == str(tmp_path / "a.mp4") and record.imagery == [str(tmp_path / "t0.png")]
    assert (record.options, record.answer, record.task, record.source) == (["x", "y"], "y", "t", {"seed": 1})


def test_a_path_may_lead_anywhere_on_this_machine_but_only_to_a_plain_file(tmp_path, processor):
    folder = tmp_path / "below"
    folder.mkdir()
    path = write_rows(folder, {**OURS, "video": "../b.mp4"}, {**OURS, "video": str(tmp_path / "b.mp4")})
    (tmp_path / "b.mp4").symlink_to(folder / "a.mp4")
    assert [record.video for record in read_records(path)] == [str(tmp_path / "b.mp4")] * 2
    os.mkfifo(folder / "pipe")
    for place in ("pipe", "/dev/zero", ".", "~/a.mp4", f"file://{folder}/a.mp4", "http://127.0.0.1/a.mp4"):
        with pytest.raises(RecordError, match="line 1: missing file"):
            read_records(write_rows(folder, {**OURS, "video": place}))
        (record,) = read_records(folder / "records.jsonl", check=None)
        assert records.clip_hash(record) is None
        with pytest.raises(ValueError, match="no such file|is a folder"):
            open_frames(processor, record.video, None, None)
        with pytest.raises(OSError, match="cannot be read as a picture: no such file"):
            open_frames(processor, None, [record.video], None)


def test_frames_with_timestamps(tmp_path):
    row = {"id": 1, "frames": ["f0.png", "f1.png"], "timestamps": [0, 0.5], "question": "q?", "answer": "free text"}
    (record,) = read_records(write_rows(tmp_path, row))
    assert record.id == "1" and record.video is None and record.options is None
    assert record.frames == [str(tmp_path / "f0.png"), str(tmp_path / "f1.png")] and record.timestamps == [0, 0.5]


def test_published_dift(tmp_path):
    text = f"<think>it moves {OUTPUT_IMAGE} left.</think>\n<answer>A. left</answer>"
    row = {"id": "7", "text_input": "q?", "text_output": text, "image_input": ["f0.png"], "image_output": ["t0.png"]}
    (record,) = read_records(write_rows(tmp_path, row))
    assert (record.id, record.question, record.answer) == ("7", "q?", "A. left")
    assert record.reasoning == f"it moves {OUTPUT_IMAGE} left."
    assert record.frames == [str(tmp_path / "f0.png")] and record.imagery == [str(tmp_path / "t0.png")]


@pytest.mark.parametrize("where", [{"video_path": "a.mp4"}, {"frame_paths": ["f0.png", "f1.png"]}])
def test_published_rl_answer_letter_becomes_its_text(tmp_path, where):
    row = {"Question": "q?", "A": "up", "B": "down", "C": "left", "D": "right", "Correct": "C", **where}
    (record,) = read_records(write_rows(tmp_path, row))
    assert record.options == ["up", "down", "left", "right"] and record.answer == "left"


@pytest.mark.parametrize("is_linked", [False, True])
def test_published_paths_begin_at_the_folder_of_their_file(tmp_path, is_linked):
    """Also where that folder holds a link `data` to itself, which earlier recipes made."""
    row = {"Question": "q?", "A": "up", "B": "down", "C": "left", "D": "right", "Correct": "C", "Type": "abs_dir"}
    rl = row | {"frame_paths": ["./data/f0.png", "data/f1.png"]}
    dift = {"id": "7", "text_input": "q?", "text_output": f"<think>{OUTPUT_IMAGE}</think><answer>A</answer>"}
    dift |= {"image_input": ["./data/f0.png"], "image_output": ["./data/t0.png"]}
    if is_linked:
        (tmp_path / "data").symlink_to(tmp_path)
    first, second = read_records(write_rows(tmp_path, rl, dift))
    assert first.task == "abs_dir"
    assert [os.path.realpath(path) for path in first.frames] == [str(tmp_path / "f0.png"), str(tmp_path / "f1.png")]
    assert [os.path.realpath(path) for path in second.imagery] == [str(tmp_path / "t0.png")]


BARE = {"id": "1", "question": "q", "answer": "a"}

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
    ({**BARE, "frames": ["f0.png", "f1.png"], "timestamps": [1, 1]}, "timestamps must increase"),
    ({**OURS, "options": ["y"]}, "1 options, where 2 to 8 can be asked"),
    ({**OURS, "options": [*"abcdefgh", "y"]}, "9 options, where 2 to 8"),
    ({**OURS, "options": []}, "0 options, where 2 to 8"),
    ({**OURS, "options": "x or y"}, "the options must be a list of texts, not 'x or y'"),
    ({**OURS, "options": ["x", 3]}, "the options must be a list of texts"),
    ({**OURS, "frames": [3], "video": None}, "int"),
    ("[" * 100000, "recursion"),
    ("[1]", "not a JSON object"),
    ("{", "Expecting"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_records_name_file_line_and_reason(tmp_path, row, reason):
    with pytest.raises(RecordError, match=rf"records\.jsonl, line 2: .*{reason}"):
        read_records(write_rows(tmp_path, OURS, row))


def test_skip_bad_reports_how_many_and_why(tmp_path, caplog):
    path, refused = write_rows(tmp_path, OURS, {**OURS, "answer": "z"}, OURS, {**OURS, "video": "gone.mp4"}), []
    kept = read_records(path, skip_bad=True)
    assert len(kept) == 2 and kept == read_records(path, skip_bad=True, refused=refused)
    assert [message.partition(": ")[0] for message in refused] == [f"{path}, line {line}" for line in (2, 4)]
    assert "skipped 2 of 4" in caplog.text and "line 2: the answer 'z'" in caplog.text and "gone.mp4" in caplog.text


def test_record_files_keep_positions_and_read_on_demand(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = write_rows(tmp_path / "one", OURS, "", {**OURS, "id": "\u00e9\u4e16", "answer": "x"})
    second = write_rows(tmp_path / "two", {**OURS, "id": "3"}, {**OURS, "video": "gone.mp4"})
    parsed, parse = [], records._parse
    monkeypatch.setattr(records, "_parse", lambda *args: parsed.append(args[1]) or parse(*args))
    files = RecordFiles([first, second])
    assert len(files) == 4 and not parsed and files.positions.nbytes == 4 * 32
    assert [files[i].id for i in (2, 1, 0)] == ["3", "\u00e9\u4e16", "1"] and parsed == [1, 3, 1]
    assert files[1] == read_records(first)[1]
    assert files.location(1) == f"{first}, line 3"
    with pytest.raises(RecordError, match=r"two.records\.jsonl, line 2: missing file"):
        files[3]


def write_array(path: Path, indent: int | None, mark: bytes = b"") -> Path:
    """An array whose second item is broken."""
    rows = [{**OURS, "id": name, "source": {"targets": [{"object": "\u00e9\u4e16"}]}} for name in "abc"]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    path.write_bytes(mark + text.replace('"id": "b",', '"id" "b",').encode())
    return path


@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()], ids=["", "mark"])
def test_an_array_of_records_is_read(tmp_path, mark):
    lines = write_rows(tmp_path, *({**OURS, "id": name} for name in "abc"))
    text = lines.read_bytes()
    expected = read_records(lines)
    rows = [json.loads(line) for line in text.splitlines()]
    for name, content in {
        "marked.jsonl": mark + text,
        "one_line.json": mark + json.dumps(rows).encode(),
        "indented.json": mark + b"\n" + json.dumps(rows, indent=2).encode() + b"\n",
        "a_line_each.json": mark + b"[" + b",\n".join(text.splitlines()) + b"]",
    }.items():
        (tmp_path / name).write_bytes(content)
        files = RecordFiles([tmp_path / name])
        assert read_records(tmp_path / name) == expected == [files[i] for i in range(3)]


def test_a_broken_item_of_an_array_is_one_bad_record(tmp_path):
    write_rows(tmp_path)
    path, refused = write_array(tmp_path / "a.json", indent=1), []
    assert [record.id for record in read_records(path, skip_bad=True, refused=refused)] == ["a", "c"]
    (message,) = refused
    assert message.startswith(f"{path}, line 19: Expecting ':' delimiter")
    files = RecordFiles([path])
    assert files.location(1) == f"{path}, line 19" and files[2].id == "c" and files[0].source["targets"]
    path, refused = write_array(tmp_path / "b.json", indent=None), []
    assert [record.id for record in read_records(path, skip_bad=True, refused=refused)] == ["a", "c"]
    assert len(refused) == 1 and refused[0].startswith(f"{path}, line 1: Expecting ':' delimiter")
    whole, last = (json.dumps({**OURS, "id": name}) for name in "ac")
    for broken in (whole[:-1], whole[:60], whole.replace('"a"', '[{"a": 1}, {"b": 2}'), ""):
        path.write_text(f"[{whole}, {broken}, {last}]")
        refused = []
        assert [record.id for record in read_records(path, skip_bad=True, refused=refused)] == ["a", "c"], broken
        assert bool(refused) == bool(broken)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RecordError, match=r"b\.json, line 1: "):
        read_records(path)


def test_a_file_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(OURS), encoding="utf-16")
    with pytest.raises(RecordError, match="line 1: the file is UTF-16; save it as UTF-8"):
        read_records(path)
    path.write_text(json.dumps({**OURS, "question": "\u00e9"}, ensure_ascii=False), encoding="latin-1")
    with pytest.raises(RecordError, match="line 1: 'utf-8' codec can't decode"):
        read_records(path)


@pytest.fixture
def frame_paths(tmp_path):
    paths = [tmp_path / f"frame{i:03}.png" for i in range(100)]
    for i, path in enumerate(paths):
        Image.new("RGB", (56, 28), (i, 0, 0)).save(path)
    return [str(path) for path in paths]


def test_frames_are_bounded_as_a_video_is(processor, frame_paths):
    """Of more frames than `max_frames` that many are opened, evenly; without times they are 1 / fps apart."""
    Path(frame_paths[1]).write_bytes(b"never opened")
    frames, times = open_frames(processor, None, frame_paths, None)
    expected = np.linspace(0, 99, processor.max_frames).round()
    assert frames.shape == (processor.max_frames, 28, 56, 3) and (frames[:, 0, 0, 0] == expected).all()
    assert times.tolist() == (expected / processor.fps).tolist()
    frames, times = open_frames(processor, None, frame_paths[2:5], [0.0, 0.5, 2.0])
    assert frames[:, 0, 0, 0].tolist() == [2, 3, 4] and times.tolist() == [0, 0.5, 2]


def test_frames_of_a_clip_are_of_one_size(processor):
    with pytest.raises(ValueError, match=r"one size, got .*\(28, 56, 3\), \(56, 28, 3\)"):
        open_frames(processor, None, [Image.new("RGB", (56, 28)), np.zeros((56, 28, 3), np.uint8)], None)


def test_a_picture_that_the_model_does_not_take_is_named(processor, tmp_path):
    Image.new("RGB", (4096, 20)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match="wide.png: is 4096 x 20 pixels, one side over 200 times the other"):
        open_frames(processor, None, [str(tmp_path / "wide.png")], None)
    (tmp_path / "wide.png").write_bytes((tmp_path / "wide.png").read_bytes()[:45])
    with pytest.raises(OSError, match="wide.png: cannot be read as a picture"):
        open_frames(processor, None, [str(tmp_path / "wide.png")], None)


words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_written_records_read_back_equal(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder)
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
            timestamps=[0.0, data.draw(st.floats(0, 1e6, exclude_min=True))] if as_frames else None,
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
    path = write_rows(tmp_path, OURS)
    before = path.read_text()
    broken = Record(id="2", question="q", answer="a", video=str(tmp_path / "a.mp4"), source={"x": object()})
    with pytest.raises(TypeError):
        write_records(path, [*read_records(path), broken])
    assert path.read_text() == before
