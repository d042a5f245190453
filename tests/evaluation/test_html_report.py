"""The report: its tables, checked by hand on made-up rows, and the page of two real runs in a browser."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.evaluation.html_report import Run, markdown, paired_table, read_run, tasks_table, write_report
from fourdthinker_hf.evaluation.runner import evaluate


def row(name, task, correct):
    return {
        "id": name,
        "task": task,
        "correct": correct,
        "choice_correct": correct,
        "prediction": "a" if correct else "b",
        "response": "",
        "num_images": 1,
        "well_formed": True,
        "num_options": 4,
        "margin": 0.5,
    }


def make_run(folder, probe, *right):
    rows = [row(str(i), "known" if i < 2 else "new", value) for i, value in enumerate(right)]
    return Run(Path(folder), {"model": "m", "benchmark": "b", "probe": probe}, rows)


RUNS = [make_run("base", "plain", True, True, False, False), make_run("zeroed", "zeros", True, False, False, True)]


def test_tables():
    head, rows = tasks_table(RUNS)
    assert head == ["task", "base (plain)", "zeroed (zeros)"]
    assert rows == [
        ["known", "100.0%", "50.0%"],
        ["new", "0.0%", "50.0%"],
        ["macro", "50.0%", "50.0%"],
        ["pooled", "50.0%", "50.0%"],
    ]


def test_trained_tasks_are_compared_by_themselves():
    _, rows = paired_table(RUNS, ["known"])
    assert [line[1:6] for line in rows] == [
        ["all", "4", "50.0%", "50.0%", "+0.0%"],
        ["trained", "2", "100.0%", "50.0%", "-50.0%"],
        ["untrained", "2", "0.0%", "50.0%", "+50.0%"],
    ]
    assert [line[7:] for line in rows] == [["1", "50.0%"], ["1", "50.0%"], ["1", "50.0%"]]
    assert [line[1] for line in paired_table(RUNS, None)[1]] == ["all"]


def test_markdown():
    assert markdown({"T": (["a", "b"], [["1", "2"]])}) == "## T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"settings": {}}))
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="no finished run"):
            read_run(folder)


def test_a_page_of_two_runs(clip, tiny_folder, tmp_path, chromium):
    """`evaluate` makes the runs, Chromium opens the page. It shows headings, bars and a wrong answer with its options,
    and loads nothing from elsewhere."""
    fields = {"answer": "left", "options": ["left", "right"], "task": "way", "video": str(clip)}
    write_records(tmp_path / "records.jsonl", [Record(str(i), f"<Where> {i}?", **fields) for i in (1, 2)])
    runs = []
    for probe in ("plain", "zeros"):
        runs.append(tmp_path / f"run-{probe}")
        evaluate(str(tiny_folder), str(tmp_path / "records.jsonl"), str(runs[-1]), probe=probe, max_new_tokens=4)
    out = write_report(runs, tmp_path / "report" / "page.html", trained=["way"], num_failures=1)
    assert "| run-zeros | trained | 2 | 0.0% | 0.0% |" in out.with_suffix(".md").read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, requests = browser.new_page(), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(out.as_uri())
        headings = page.locator("h2").all_inner_texts()
        assert headings == [
            "Runs",
            "By task",
            "Compared with the first run",
            "Wrong answers of which run-plain was most certain",
        ]
        assert page.locator("svg rect").count() == 6  # three rows of two runs
        assert page.locator("h3").inner_text() == "1 (way): <Where> 1?"
        assert page.locator("li.right").inner_text() == "A. left (right)"
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [out.as_uri()]
