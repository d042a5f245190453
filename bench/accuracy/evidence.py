"""Evaluate a checkpoint on DSR-Sim, plainly and under every probe, and write the page docs/research/evidence.md.

    python bench/accuracy/evidence.py outputs/evidence    # continues where it was stopped
    python bench/accuracy/evidence.py outputs/quick --each 10 --page outputs/quick/evidence.md

Simulates `--each` questions of every task: at level 1 the four tasks that the tiny checkpoints were trained on and
DSR-Sim's 13, at levels 2 and 3 the 13. Runs `evaluate` with every probe at level 1, and without a probe at the others.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fourdthinker_hf.checkpoints import BUNDLED  # noqa: E402
from fourdthinker_hf.data.question_vocabulary import DSR_TASKS  # noqa: E402
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS  # noqa: E402
from fourdthinker_hf.data.simulation.generate_records import simulate  # noqa: E402
from fourdthinker_hf.evaluation.html_report import Run, Table, markdown, read_run  # noqa: E402
from fourdthinker_hf.evaluation.probes import PROBES  # noqa: E402
from fourdthinker_hf.evaluation.runner import evaluate  # noqa: E402
from fourdthinker_hf.evaluation.statistics import compare, wilson_interval  # noqa: E402

PAGE = """# Which probes change the answers of `{model}`?

On the four tasks that it was trained on, the accuracy is {accuracy}. What its mental images contain
{matters} to its answers.

- These probes change it (the 95% interval of the difference leaves out 0): {changing}.
- These do not: {unchanging}.

A probe cuts one path from the video to the answer ([probes.py](../../fourdthinker_hf/evaluation/probes.py)).
`zeros`, `noise` and `swap` test whether the content of the fed latents matters. `suppressed` and `pad-row` also put
the model in a situation that it never met in training, so a loss under them does not show that the content matters.

{probes}
The same {num} questions were asked under each probe, {each} of each task, about simulated clips of level 1; `plain` is
the run without a probe. Intervals of accuracies are Wilson's. Differences are paired by question; their intervals
are Newcombe's (1998, method 10), their p values those of McNemar's exact test. Guessing gives 25%.

{levels}
DSR-Sim's 13 tasks were not in the training, nor were the objects, camera motions and clip lengths of levels 2 and 3.
To such a question the model gives an answer of a task that it knows. That answer names none of the options and counts
as wrong, so the accuracy is below guessing and no probe can lower it further. This shows only that nothing carries
over from the trained tasks.

## How was this measured?

By `python bench/accuracy/evidence.py {arguments}`, with PyTorch {torch} and transformers {transformers} on
{cores} CPU cores. It runs these commands, with the name of every probe in place of `zeros`, and level 3 like level 2:

```
fourdthinker simulate --num {first} --seed {seed} {tasks} --tasks dsr --out level1
fourdthinker simulate --num {others} --seed {seed} --level 2 --out level2
fourdthinker evaluate --model {path} --benchmark level1 --out plain
fourdthinker evaluate --model {path} --benchmark level1 --out zeros --probe zeros
fourdthinker evaluate --model {path} --benchmark level2 --out level2-plain
```
"""


def is_trained(row: dict) -> bool:
    return row["task"] in BASIC_TASKS


def share_correct(rows: list[dict]) -> float:
    return sum(row["correct"] for row in rows) / len(rows)


def accuracy_with_interval(rows: list[dict]) -> str:
    low, high = wilson_interval(sum(row["correct"] for row in rows), len(rows))
    return f"{share_correct(rows):.1%} ({low:.1%} to {high:.1%})"


def probes_table(runs: list[Run]) -> tuple[Table, list[str], list[str]]:
    """The accuracy of each run on the trained tasks, with its difference to the first run; then the names of the
    probes whose 95% interval of the difference leaves out 0, and those of the others."""
    head = ["probe", "what it cuts", *BASIC_TASKS, "all", "difference (95% interval)", "McNemar p", "answers changed"]
    plain = [row for row in runs[0].rows if is_trained(row)]
    table, changing, unchanging = [], [], []
    for run in runs:
        rows = [row for row in run.rows if is_trained(row)]
        by_task = [share_correct([row for row in rows if row["task"] == task]) for task in BASIC_TASKS]
        cells = [run.name, PROBES[run.name].cuts, *(f"{share:.1%}" for share in [*by_task, share_correct(rows)])]
        if run is runs[0]:
            table.append([*cells, "", "", ""])
            continue
        found = compare(plain, rows)
        interval = f"{found['difference']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})"
        table.append([*cells, interval, f"{found['p']:.2g}", f"{found['changed']:.1%}"])
        (unchanging if found["low"] <= 0 <= found["high"] else changing).append(f"`{run.name}`")
    return (head, table), changing, unchanging


def levels_table(runs: list[Run]) -> Table:
    """The accuracy of the plain runs at levels 1, 2 and 3 on the tasks that were not trained."""
    rows = []
    for level, run in enumerate(runs, start=1):
        untrained = [row for row in run.rows if not is_trained(row)]
        solved = sorted({row["task"] for row in untrained if row["correct"]})
        rows.append([str(level), str(len(untrained)), accuracy_with_interval(untrained), ", ".join(solved) or "none"])
    return ["level", "questions", "accuracy (95% interval)", "tasks with a right answer"], rows


def main(
    out: Annotated[Path, typer.Argument(help="Folder for clips and runs. What it already holds is used.")],
    each: Annotated[int, typer.Option(min=1, help="Questions of each task and level.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Seed of the questions. It must differ from those of the training.")
    ] = 900001,
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = BUNDLED,
    page: Annotated[Path, typer.Option(help="The page to write.")] = ROOT / "docs/research/evidence.md",
) -> None:
    """Simulate the questions, evaluate the checkpoint on them, and write the page."""
    asked = {1: (*BASIC_TASKS, *DSR_TASKS), 2: DSR_TASKS, 3: DSR_TASKS}
    for level, tasks in asked.items():
        if not (out / f"level{level}" / "records.jsonl").exists():
            simulate(each * len(tasks), seed, out / f"level{level}", level, tasks)
    runs = {}
    for name in (*PROBES, "level2-plain", "level3-plain"):
        benchmark, probe = ("level1", name) if name in PROBES else name.split("-")
        evaluate(str(model), str(out / benchmark), str(out / name), probe=probe)
        runs[name] = read_run(out / name)
    probes, changing, unchanging = probes_table([runs[name] for name in PROBES])
    levels = levels_table([runs[name] for name in ("plain", "level2-plain", "level3-plain")])
    content_matters = {"`zeros`", "`noise`", "`swap`"} & set(changing)
    trained = [row for row in runs["plain"].rows if is_trained(row)]
    settings = runs["plain"].settings
    path = model.relative_to(ROOT) if model.is_relative_to(ROOT) else model
    arguments = f"outputs/evidence --model {path}" + f" --each {each}" * (each != 100)
    page.write_text(
        PAGE.format(
            model=model.name,
            path=path,
            accuracy=accuracy_with_interval(trained),
            matters="makes a measurable difference" if content_matters else "makes no measurable difference",
            changing=", ".join(changing) or "none",
            unchanging=", ".join(unchanging) or "none",
            probes=markdown({"Accuracy on the trained tasks, by probe": probes}),
            levels=markdown({"Accuracy on the tasks that it was not trained on": levels}),
            num=len(trained),
            each=each,
            arguments=arguments + f" --seed {seed}" * (seed != 900001),
            torch=settings["torch"],
            transformers=settings["transformers"],
            cores=os.cpu_count(),
            first=each * len(asked[1]),
            others=each * len(asked[2]),
            seed=seed,
            tasks=" ".join(f"--tasks {task}" for task in BASIC_TASKS),
        )
    )
    typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
