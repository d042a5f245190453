"""Draws a contact sheet: one picture with the frames, questions and answers of many records, for a person to check."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..output_files import make_writable, whole_file
from ..video_fourdthinker import load_video
from .records import LETTERS, Record, read_records

FRAME_SIZE, GAP, LINE_HEIGHT = 160, 6, 15  # pixels; a frame's size is that of its longer side
LINE_LENGTH = 168  # characters
TEXT_COLOUR, RIGHT_COLOUR, BACKGROUND = (30, 30, 30), (0, 110, 40), (255, 255, 255)


def draw_contact_sheet(
    records: str | os.PathLike[str], out: str | os.PathLike[str], num: int = 20, first: int = 0, num_frames: int = 6
) -> Path:
    """Draw `num` records of a JSONL file, from index `first`, to the PNG file `out`, and return `out`.

    For each record there are `num_frames` frames, evenly spread over its clip, with their times; then the question,
    the options with the right one marked, and the reasoning. Raises `ValueError` if the file has no record at `first`.
    """
    found = read_records(records)
    chosen = found[first : first + num]
    if not chosen:
        raise ValueError(f"{records} has {len(found)} records, so there is none at index {first}.")
    make_writable(Path(out).absolute().parent)
    strips = [draw_record(record, num_frames) for record in chosen]
    width, height = max(strip.width for strip in strips), sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    out = Path(out)
    with whole_file(out) as temporary:
        sheet.save(temporary, format="PNG")
    return out


def caption_lines(record: Record) -> list[tuple[str, bool]]:
    """The lines of text below a record's frames, each with whether it belongs to the right answer."""
    lines = [(f"{record.id}   {record.question}", False)]
    for letter, option in zip(LETTERS, record.options or (), strict=False):
        right = option == record.answer
        lines.append((f"  {'>' if right else ' '} {letter}. {option}{'   <- right' if right else ''}", right))
    if not record.options:
        lines.append((f"  > {record.answer}", True))
    if record.reasoning:
        lines.append((f"  {record.reasoning}", False))
    return [(part, right) for line, right in lines for part in textwrap.wrap(line, LINE_LENGTH, drop_whitespace=False)]


def draw_record(record: Record, num_frames: int) -> Image.Image:
    """A record's frames in a row, with its text below."""
    pictures, times = sample_frames(record, num_frames)
    lines, font = caption_lines(record), ImageFont.load_default(12)
    top = FRAME_SIZE + 2 * GAP  # of the text
    strip = Image.new("RGB", (num_frames * (FRAME_SIZE + GAP) + GAP, top + (len(lines) + 1) * LINE_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for k, (picture, time) in enumerate(zip(pictures, times, strict=True)):
        left = GAP + k * (FRAME_SIZE + GAP)
        scale = FRAME_SIZE / max(picture.size)
        strip.paste(picture.resize((round(picture.width * scale), round(picture.height * scale))), (left, GAP))
        draw.rectangle((left, GAP, left + 50, GAP + LINE_HEIGHT), fill=TEXT_COLOUR)
        draw.text((left + 3, GAP), f"{time:.2f} s", fill=BACKGROUND, font=font)
    for k, (line, right) in enumerate(lines):
        draw.text((GAP, top + k * LINE_HEIGHT), line, fill=RIGHT_COLOUR if right else TEXT_COLOUR, font=font)
    return strip


def sample_frames(record: Record, num_frames: int) -> tuple[Sequence[Image.Image], Sequence[float]]:
    """At most `num_frames` frames of a record's clip, evenly spread from first to last, and their times in s.

    Frames without timestamps are numbered instead.
    """
    if record.video is not None:
        pictures, times = load_video(record.video, num_frames=num_frames)
        return [Image.fromarray(picture) for picture in pictures], times.tolist()
    last = len(record.frames) - 1
    chosen = sorted({round(k * last / max(1, num_frames - 1)) for k in range(num_frames)})
    times = record.timestamps or list(range(len(record.frames)))
    return [Image.open(record.frames[k]).convert("RGB") for k in chosen], [times[k] for k in chosen]
