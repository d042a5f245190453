"""The contact sheet shows the frames of each record, every option, and which one is right."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fourdthinker_hf.cli import app
from fourdthinker_hf.data.contact_sheet import (
    FRAME_SIZE,
    GAP,
    LINE_HEIGHT,
    caption_lines,
    draw_contact_sheet,
    sample_frames,
)
from fourdthinker_hf.data.records import Record, read_records, write_records


@pytest.fixture
def records(tmp_path):
    """Five records of 12 frames, frame k of record r all (20 r, 15 k, 100), 2 a second."""
    made = []
    for r in range(5):
        frames = []
        for k in range(12):
            frames.append(str(tmp_path / f"{r}_{k}.png"))
            Image.fromarray(np.full((40, 40, 3), (20 * r, 15 * k, 100), np.uint8)).save(frames[-1])
        times = [k / 2 for k in range(12)]
        made.append(Record(str(r), "Which way?", "left", ["right", "left"], frames=frames, timestamps=times))
    write_records(tmp_path / "records.jsonl", made)
    return tmp_path / "records.jsonl"


def test_frames_are_evenly_spread_from_first_to_last(records):
    pictures, times = sample_frames(read_records(records)[0], 6)
    assert times == [0.0, 1.0, 2.0, 3.5, 4.5, 5.5]
    assert [picture.getpixel((5, 5))[1] for picture in pictures] == [30 * 0, 30, 60, 105, 135, 165]


def test_the_sheet_has_the_records_asked_for(records, tmp_path):
    out = draw_contact_sheet(records, tmp_path / "sheet.png", num=2, first=3)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] == 6 * (FRAME_SIZE + GAP) + GAP
    row = sheet[GAP + FRAME_SIZE // 2]  # through the middle of the first strip: record 3
    assert [tuple(row[GAP + k * (FRAME_SIZE + GAP) + FRAME_SIZE // 2]) for k in (0, 5)] == [
        (60, 0, 100),
        (60, 165, 100),
    ]
    middle = sheet.shape[0] // 2 + GAP + FRAME_SIZE // 2
    assert tuple(sheet[middle, GAP + FRAME_SIZE // 2]) == (80, 0, 100)


def test_the_right_option_alone_is_marked():
    record = Record(
        "7", "Which way?", "left", ["right", "left", "left again", "up"], reasoning="look. left.", frames=[]
    )
    lines = caption_lines(record)
    assert [line for line, right in lines if right] == ["  > B. left   <- right"]
    assert sum("<-" in line for line, _ in lines) == 1 and any("left again" in line for line, _ in lines)
    assert lines[0][0].endswith("Which way?") and "look. left." in lines[-1][0]


def test_a_question_without_options_shows_its_answer():
    assert ("  > a ball", True) in caption_lines(Record("7", "What is it?", "a ball", frames=[]))


def test_the_command_writes_it_and_says_where(records, tmp_path):
    done = CliRunner().invoke(app, ["contact-sheet", str(records), str(tmp_path / "a.png"), "--num", "3"])
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").height == pytest.approx(3 * (FRAME_SIZE + 2 * GAP + 4 * LINE_HEIGHT), abs=1)


def test_nothing_to_draw_says_so(records, tmp_path):
    done = CliRunner().invoke(app, ["contact-sheet", str(records), str(tmp_path / "a.png"), "--first", "9"])
    assert done.exit_code == 2 and "has 5 records, so there is none at index 9" in done.stderr
    assert not (tmp_path / "a.png").exists()
