"""The evidence page, docs/research/evidence.md: the checkpoint on DSR-Sim, and under every probe, by one command.

    python bench/accuracy/evidence.py outputs/evidence    # goes on where it was stopped
    python bench/accuracy/evidence.py outputs/quick --each 10 --page outputs/quick/evidence.md

Simulates `--each` questions of every task (the four plain kinds and DSR-Sim's 13 at level 1, and the 13 at levels 2
and 3), runs `evaluate` with every probe at level 1 and plainly at the others, and writes the tables of `report`, the
trained tasks apart from those the checkpoint never met.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fourdthinker_hf.data.simulation.generation import DSR_TASKS, TASKS, simulate  # noqa: E402
from fourdthinker_hf.evaluation.html_report import markdown, paired_table, read_run, runs_table, tasks_table  # noqa: E402
from fourdthinker_hf.evaluation.probes import PROBES  # noqa: E402
from fourdthinker_hf.evaluation.runner import evaluate  # noqa: E402
from fourdthinker_hf.evaluation.statistics import compare  # noqa: E402
from fourdthinker_hf.hub.files import BUNDLED  # noqa: E402

PAGE = """# Evidence: `{model}` on DSR-Sim

It was trained on {trained},
simulated at level 1, and on nothing else; DSR-Sim's 13 tasks it has never met, and levels 2 and 3 show things, cameras
and lengths that it has never seen. Chance is 25% in every row. A probe cuts one path from the video to the answer
([probes.py](../fourdthinker_hf/evaluation/probes.py)); the same questions are answered with and without, and compared
in pairs.

To a task that it has never met it gives an answer of a task that it has, which names none of the options and counts as
wrong: so those rows lie below chance, and no probe can lower them. They say that nothing carries over, no more.

{said}

Written by `python bench/accuracy/evidence.py outputs/evidence{options}`, with PyTorch {torch} and transformers
{transformers} on {cores} CPU cores, at the commit that brought this page. Its runs are these commands, with the name
of every probe, and level 3 as level 2:

```
fourdthinker simulate --num {first} --seed {seed} {tasks} --tasks dsr --out level1
fourdthinker simulate --num {others} --seed {seed} --level 2 --out level2
fourdthinker evaluate --benchmark level1 --out plain
fourdthinker evaluate --benchmark level1 --out zeros --probe zeros
fourdthinker report plain zeros {trained_options} --out report.html
```

{tables}"""


def verdict(runs, trained: bool) -> str:
    """Which probes move the accuracy on the trained tasks, or on the others: their 95% interval leaves out 0."""
    moves, stays = [], []
    for run in runs[1:]:
        pair = [[row for row in r.rows if (row["task"] in TASKS) == trained] for r in (runs[0], run)]
        found = compare(*pair)
        text = f"`{run.name}` ({found['difference']:+.1%})"
        (stays if found["low"] <= 0 <= found["high"] else moves).append(text)
    where = "On the trained tasks" if trained else "On the untrained tasks"
    return (
        f"{where}, these probes move the accuracy, by intervals that leave out 0: {', '.join(moves) or 'none'}. "
        f"These do not: {', '.join(stays) or 'none'}."
    )


def main(
    out: Annotated[Path, typer.Argument(help="Folder for clips and runs; what is there already is kept.")],
    each: Annotated[int, typer.Option(min=1, help="Questions of each task and level.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the questions: none that was trained on.")] = 900001,
    model: Annotated[Path, typer.Option(help="The checkpoint.")] = BUNDLED,
    page: Annotated[Path, typer.Option(help="The page to write.")] = ROOT / "docs" / "evidence.md",
) -> None:
    """Simulate, evaluate, write the page."""
    asked = {1: (*TASKS, *DSR_TASKS), 2: DSR_TASKS, 3: DSR_TASKS}
    for level, tasks in asked.items():
        if not (out / f"level{level}" / "records.jsonl").exists():
            simulate(each * len(tasks), seed, out / f"level{level}", level, tasks)
    wanted = [("level1", probe) for probe in PROBES] + [("level2", "plain"), ("level3", "plain")]
    runs = {}
    for benchmark, probe in wanted:
        name = probe if benchmark == "level1" else benchmark
        evaluate(str(model), str(out / benchmark), str(out / name), probe=probe)
        runs[name] = read_run(out / name)
    probed, levels = [runs[name] for name in PROBES], [runs[name] for name in ("plain", "level2", "level3")]
    head, rows = runs_table(list(runs.values()))
    kept = [0, 3, 4, 5, 6]  # neither the model nor the folders
    tables = {
        "Every run": ([head[k] for k in kept], [[row[k] for k in kept] for row in rows]),
        "By task and level": tasks_table(levels),
        "By task and probe": tasks_table(probed),
        "Against the plain run": paired_table(probed, TASKS),
    }
    settings, options = probed[0].settings, f" --each {each}" * (each != 100) + f" --seed {seed}" * (seed != 900001)
    options += f" --model {model}" * (model != BUNDLED)
    page.write_text(
        PAGE.format(
            trained=", ".join(f"`{task}`" for task in TASKS),
            said=f"{verdict(probed, True)}\n\n{verdict(probed, False)}",
            options=options,
            model=model.name,
            torch=settings["torch"],
            transformers=settings["transformers"],
            cores=os.cpu_count(),
            first=each * len(asked[1]),
            others=each * len(asked[2]),
            seed=seed,
            tasks=" ".join(f"--tasks {task}" for task in TASKS),
            trained_options=" ".join(f"--trained {task}" for task in TASKS),
            tables=markdown(tables),
        )
    )
    typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
