"""A contact sheet: questions with their frames and answers on one picture, for a person to check many at a glance."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..video_fourdthinker import load_video
from .records import LETTERS, Record, read_records

FRAME, GAP, LINE, WRAP = 160, 6, 15, 168  # pixels; characters a line
INK, RIGHT, PAPER = (30, 30, 30), (0, 110, 40), (255, 255, 255)


def contact_sheet(
    records: str | os.PathLike[str], out: str | os.PathLike[str], num: int = 20, first: int = 0, frames: int = 6
) -> Path:
    """Draw records `first` to `first + num` of a JSONL file to the PNG `out`: for each, `frames` frames evenly spread
    over its clip with their times in s, the question, and the options with the right one marked; returns `out`."""
    found = read_records(records)
    chosen = found[first : first + num]
    if not chosen:
        raise ValueError(f"{records} has {len(found)} records: none from number {first} on")
    strips = [draw_record(record, frames) for record in chosen]
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(out, format="PNG")
    return Path(out)


def text_of(record: Record) -> list[tuple[str, bool]]:
    """The lines under a strip, and whether each is the right answer's."""
    lines = [(f"{record.id}   {record.question}", False)]
    for letter, option in zip(LETTERS, record.options or (), strict=False):
        right = option == record.answer
        lines.append((f"  {'>' if right else ' '} {letter}. {option}{'   <- right' if right else ''}", right))
    if not record.options:
        lines.append((f"  > {record.answer}", True))
    if record.reasoning:
        lines.append((f"  {record.reasoning}", False))
    return [(part, right) for line, right in lines for part in textwrap.wrap(line, WRAP, drop_whitespace=False)]


def draw_record(record: Record, count: int) -> Image.Image:
    """One record's frames in a row, and its text below."""
    pictures, times = sample(record, count)
    lines, font = text_of(record), ImageFont.load_default(12)
    strip = Image.new("RGB", (count * (FRAME + GAP) + GAP, FRAME + 2 * GAP + (len(lines) + 1) * LINE), PAPER)
    draw = ImageDraw.Draw(strip)
    for k, (picture, time) in enumerate(zip(pictures, times, strict=True)):
        left = GAP + k * (FRAME + GAP)
        scale = FRAME / max(picture.size)
        strip.paste(picture.resize((round(picture.width * scale), round(picture.height * scale))), (left, GAP))
        draw.rectangle((left, GAP, left + 50, GAP + LINE), fill=INK)
        draw.text((left + 3, GAP), f"{time:.2f} s", fill=PAPER, font=font)
    for k, (line, right) in enumerate(lines):
        draw.text((GAP, FRAME + 2 * GAP + k * LINE), line, fill=RIGHT if right else INK, font=font)
    return strip


def sample(record: Record, count: int) -> tuple[Sequence[Image.Image], Sequence[float]]:
    """At most `count` frames of a record's clip, evenly spread from the first to the last, and their times in s."""
    if record.video is not None:
        pictures, times = load_video(record.video, num_frames=count)
        return [Image.fromarray(picture) for picture in pictures], times.tolist()
    last = len(record.frames) - 1
    chosen = sorted({round(k * last / max(1, count - 1)) for k in range(count)})
    times = record.timestamps or list(range(len(record.frames)))
    return [Image.open(record.frames[k]).convert("RGB") for k in chosen], [times[k] for k in chosen]
