"""Writes the page of a run of `annotate`: every video with its questions, target frames and reasons of refusal.

The page stands in the run's folder and shows the pictures and clips that lie there, so the folder can be moved or
served as it is.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from ...output_files import write_whole
from ..records import LETTERS, Record

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin: 2rem 0 .3rem; font-size: 1.05rem; border-top: 1px solid #ccc; padding-top: 1rem; }
article { margin: .8rem 0; } .pictures img { height: 7rem; margin-right: .3rem; } video { height: 9rem; }
.right { color: #006e28; font-weight: 600; } .left-out, .refused, .reasoning { color: #666; } li { margin: .1rem 0; }
"""


def write_run_page(
    path: Path, summary_lines: Sequence[str], reports: Sequence[dict], found: Sequence[Record], kept: Sequence[Record]
) -> None:
    """Write the HTML page `path`: the summary, then each video of `reports` with the records `found` in it.

    Records that are not among `kept`, which have options, are marked as left out.
    """
    with_options = {record.id: record for record in kept}
    by_video: dict[str, list[Record]] = {}
    for record in found:
        by_video.setdefault(record.source["video"], []).append(with_options.get(record.id, record))
    parts = ["<!doctype html><meta charset='utf-8'><title>Annotated videos</title>", f"<style>{STYLE}</style>"]
    parts += [
        "<h1>Annotated videos</h1>",
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in summary_lines),
        "</ul>",
    ]
    for report in sorted(reports, key=lambda report: report["video"]):
        parts += _video_lines(report, by_video.get(report["video"], []), path.parent)
    write_whole(path, "\n".join(parts))


def _video_lines(report: dict, records: Sequence[Record], folder: Path) -> list[str]:
    lines = [f"<h2>{html.escape(report['video'])}: {report['shots']} shots, {len(records)} questions</h2>"]
    if report["cause"]:
        lines.append(f"<p class='refused'>Failed at the stage {report['stage']}: {html.escape(report['cause'])}</p>")
    shown = None
    for record in records:
        if record.video != shown:
            shown = record.video
            lines.append(f"<video src='{_address(record.video, folder)}' controls muted loop preload='none'></video>")
        lines.append("<article>")
        left_out = "" if record.options else " <span class='left-out'>(left out for balance)</span>"
        lines.append(f"<div>{html.escape(record.question)}{left_out}</div>")
        for letter, option in zip(LETTERS, record.options or [record.answer], strict=False):
            name = " class='right'" if option == record.answer else ""
            lines.append(f"<div{name}>{letter}. {html.escape(option)}</div>")
        times = [f"{target['object']} at {target['time']:g} s" for target in record.source["targets"]]
        pictures = (
            f"<img src='{_address(image, folder)}' title='{label}' alt='{label}' loading='lazy'>"
            for image, label in zip(record.imagery, map(html.escape, times), strict=True)
        )
        lines += ["<div class='pictures'>", *pictures, "</div>"]
        lines += [f"<div class='reasoning'>{html.escape(record.reasoning)}</div>", "</article>"]
    if report["refused"]:
        reasons = "; ".join(f"{reason} ({num})" for reason, num in report["refused"].items())
        lines.append(f"<p class='refused'>Not asked: {html.escape(reasons)}</p>")
    return lines


def _address(file: str, folder: Path) -> str:
    return html.escape(Path(os.path.relpath(file, folder)).as_posix(), quote=True)
