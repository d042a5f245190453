"""Compares runs of `evaluate` in one HTML file that needs no other, and in the same tables as Markdown.

Every other run is compared with the first one, question by question.
"""

import html
import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.records import Record
from ..demo.answer_html import read_asset, reasoning_html
from ..output_files import make_writable, write_whole
from ..qa import VideoQA
from .benchmarks import load_benchmark
from .prediction_files import PREDICTIONS, REPORT
from .probes import PROBES
from .report import accuracy_table
from .statistics import compare

COLOURS = "#3b6fb6 #c8553d #5a9367 #8d6a9f #b58b00 #4f9da6 #a23b72 #6b7280 #7c5e3c #9db843 #d07fa8 #2f4858".split()
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>4DThinker: comparison of runs</title><style>{style}</style><h1>Comparison of runs</h1>{body}</html>
"""


@dataclass(frozen=True)
class Run:
    """A finished run of `fourdthinker evaluate`: its folder, settings, and rows, one for each question."""

    folder: Path
    settings: dict
    rows: list[dict]

    @property
    def name(self) -> str:
        probe = self.settings["probe"]
        return self.folder.name if probe in self.folder.name else f"{self.folder.name} ({probe})"


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. Raises `ValueError` unless it is finished."""
    folder = Path(folder)
    report = json.loads((folder / REPORT).read_text()) if (folder / REPORT).is_file() else {}
    if "table" not in report:
        raise ValueError(
            f"{folder}: there is no finished run of `fourdthinker evaluate` in this folder; run the command to its end"
        )
    if "fallback" not in report["settings"]:
        raise ValueError(f"{folder}: this run is of a version that measured no fallback; evaluate it again")
    return Run(folder, report["settings"], [json.loads(row) for row in (folder / PREDICTIONS).open(encoding="utf-8")])


Table = tuple[list[str], list[list[str]]]  # the head, and the rows


def runs_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        total = accuracy_table(run.rows)["pooled"]
        probe = run.settings["probe"]
        rows.append(
            [
                run.name,
                str(run.settings["model"]),
                str(run.settings["benchmark"]),
                PROBES[probe].cuts,
                str(total["num"]),
                f"{total['accuracy']:.1%} ({total['low']:.1%} to {total['high']:.1%})",
                f"{total['choice_accuracy']:.1%} ({total['choice_low']:.1%} to {total['choice_high']:.1%})",
                f"{total['pictured']:.1%}",
            ]
        )
    accuracies = ["accuracy (95% interval)", "with fallback (95% interval)"]
    head = ["run", "model", "benchmark", "what it cuts", "questions", *accuracies, "pictured"]
    return head, rows


def tasks_table(runs: Sequence[Run]) -> Table:
    tables = [accuracy_table(run.rows) for run in runs]
    tasks = list(dict.fromkeys(task for table in tables for task in table))
    rows = [[task, *(f"{table[task]['accuracy']:.1%}" if task in table else "" for table in tables)] for task in tasks]
    return ["task", *(run.name for run in runs)], rows


def paired_table(runs: Sequence[Run], trained: Iterable[str] | None) -> Table:
    """Every other run compared with the first, on the questions that both have. With `trained`, the names of tasks,
    these and the other tasks are also compared by themselves."""
    groups = {"all": lambda task: True}
    if trained is not None:
        trained = set(trained)
        groups |= {"trained": lambda task: task in trained, "untrained": lambda task: task not in trained}
    first, rows = runs[0], []
    for run in runs[1:]:
        shared = {row["id"] for row in first.rows} & {row["id"] for row in run.rows}
        for group, belongs in groups.items():
            pair = [
                [row for row in side.rows if row["id"] in shared and belongs(row["task"])] for side in (first, run)
            ]
            if pair[0]:
                rows.append([run.name, group, *_paired_cells(compare(*pair))])
    head = [
        "run",
        "tasks",
        "questions",
        f"{first.name}",
        "this run",
        "difference",
        "95% interval",
        "McNemar p",
        "answers changed",
    ]
    return head, rows


def _paired_cells(found: dict) -> list[str]:
    return [
        str(found["num"]),
        f"{found['first']:.1%}",
        f"{found['second']:.1%}",
        f"{found['difference']:+.1%}",
        f"{found['low']:+.1%} to {found['high']:+.1%}",
        f"{found['p']:.2g}",
        f"{found['changed']:.1%}",
    ]


def markdown(tables: dict[str, Table]) -> str:
    """The tables as Markdown, each under its title."""
    text = []
    for title, (head, rows) in tables.items():
        lines = [head, ["---"] * len(head), *rows]
        text.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(text)


def html_table(table: Table) -> str:
    head, rows = table
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table>"


def accuracy_chart_html(runs: Sequence[Run]) -> str:
    """An SVG with the accuracy of each run on each task as a bar, its 95% interval, and a line at the accuracy of a
    guess; and the key of its colours. Lengths are in pixels."""
    tables = [accuracy_table(run.rows) for run in runs]
    tasks = list(dict.fromkeys(task for table in tables for task in table))
    left, width, bar, gap = 150, 500, 9, 10
    row_height = bar * len(runs) + gap
    shapes = []
    for row, task in enumerate(tasks):
        top = row * row_height + gap
        shapes.append(f"<text x='{left - 8}' y='{top + bar * len(runs) / 2 + 4}' text-anchor='end'>{task}</text>")
        for number, table in enumerate(tables):
            if task in table:
                summary, y = table[task], top + number * bar
                low, high, end = (left + width * summary[name] for name in ("low", "high", "accuracy"))
                size = f"width='{end - left:.1f}' height='{bar - 1}' fill='{COLOURS[number % len(COLOURS)]}'"
                shapes.append(f"<rect x='{left}' y='{y}' {size}/>")
                shapes.append(f"<path d='M{low:.1f} {y + 4}H{high:.1f}' stroke='currentColor' stroke-width='1.2'/>")
    height, chance = len(tasks) * row_height + gap + 20, left + width * tables[0]["pooled"]["chance"]
    shapes.append(f"<path d='M{chance} 0V{height - 18}' stroke='currentColor' stroke-dasharray='3 3'/>")
    shapes += [
        f"<text x='{left + width * percent / 100}' y='{height - 4}' text-anchor='middle'>{percent}%</text>"
        for percent in (0, 25, 50, 75, 100)
    ]
    key = "".join(
        f"<span class='key' style='background:{COLOURS[number % len(COLOURS)]}'></span>{html.escape(run.name)}"
        for number, run in enumerate(runs)
    )
    label = "The accuracy of each run on each task. The table below has the same numbers."
    box = f"0 0 {left + width + 20} {height}"
    return f"<svg role='img' aria-label='{label}' viewBox='{box}'>{''.join(shapes)}</svg><p>{key}</p>"


def wrong_answers_html(run: Run, records: Iterable[Record], qa: VideoQA, num: int) -> str:
    """The `num` wrong answers of which the model was most certain, by their margin. Each question is asked once more,
    to show the mental images."""
    by_id = {record.id: record for record in records}
    wrong = [row for row in run.rows if not row["correct"] and row["margin"] is not None and by_id[row["id"]].video]
    parts = []
    for row in sorted(wrong, key=lambda row: (-row["margin"], row["id"]))[:num]:
        record = by_id[row["id"]]
        answer = qa.ask(record.video, record.question, record.options)
        options = []
        for letter, option in zip(string.ascii_uppercase, record.options, strict=False):
            marks = " (right)" * (option == record.answer) + " (its answer)" * (option == row["prediction"])
            style = " class='right'" * (option == record.answer)
            options.append(f"<li{style}>{letter}. {html.escape(option)}{marks}</li>")
        title = f"{row['id']} ({row['task']}): {record.question}"
        parts.append(f"<h3>{html.escape(title)}</h3><ul>{''.join(options)}</ul>{reasoning_html(answer, [])}")
    return "".join(parts) or "<p>None.</p>"


def write_report(
    folders: Sequence[str | Path], out: str | Path, trained: Sequence[str] | None = None, num_failures: int = 8
) -> Path:
    """Write the comparison to `out` (HTML), and its tables beside it as `.md`. Returns `out`.

    Args:
        folders: finished runs of `fourdthinker evaluate`. The others are compared with the first.
        trained: names of the tasks that the model was trained on.
        num_failures: number of wrong answers of the first run to show. Its model is loaded for them, unless it is 0.
    """
    runs, out = [read_run(folder) for folder in folders], Path(out)
    tables = {"Runs": runs_table(runs), "By task": tasks_table(runs)}
    if len(runs) > 1:
        tables["Compared with the first run"] = paired_table(runs, trained)
    charts = {"By task": accuracy_chart_html(runs)}
    body = [f"<h2>{title}</h2>{charts.get(title, '')}{html_table(table)}" for title, table in tables.items()]
    make_writable(out.parent)
    if num_failures:
        settings = runs[0].settings
        records = load_benchmark(settings["benchmark"], refused=[])
        place = {name: settings.get(name) for name in ("revision", "subfolder")}
        qa = VideoQA.from_pretrained(settings["model"], **place)
        body.append(f"<h2>Wrong answers of which {html.escape(runs[0].name)} was most certain</h2>")
        body.append(wrong_answers_html(runs[0], records, qa, num_failures))
    style = Path(__file__).with_suffix(".css").read_text() + read_asset("answer.css")
    write_whole(out.with_suffix(".md"), markdown(tables))
    return write_whole(out, PAGE.format(style=style, body="".join(body)))
