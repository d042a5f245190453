"""Accuracies with 95% intervals: per task, over tasks (macro), over questions (pooled); and what else a run shows."""

from collections import defaultdict

from .statistics import wilson_interval

NEAR_TIE = 1e-4  # of the two best scores: below it, another batch size may choose otherwise
TABLE_HEAD = (
    "| task | questions | correct | accuracy | 95% interval | chance | pictured | well-formed |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def accuracy_table(predictions: list[dict]) -> dict[str, dict]:
    """Per task and `"pooled"` (micro): `num`, `correct`, `accuracy`, `low`, `high` (Wilson, 95%), `chance` (of a
    guess), and the shares of answers that `pictured` at least one mental image and that were `well_formed`. `"macro"`
    has the means over tasks; its interval joins theirs as Zou and Donner (2008) do for sums."""
    groups = defaultdict(list)
    for row in predictions:
        groups[row["task"]].append(row)
    tasks = {name: _summary(rows) for name, rows in sorted(groups.items())}
    return {**tasks, "macro": _mean(list(tasks.values())), "pooled": _summary(predictions)}


def format_table(table: dict[str, dict]) -> str:
    """The table as Markdown."""
    names = {"macro": "macro (mean of tasks)", "pooled": "micro (pooled)"}
    lines = [TABLE_HEAD]
    for name, row in table.items():
        lines.append(
            f"| {names.get(name, name)} | {row['num']} | {row['correct']} | {row['accuracy']:.1%} "
            f"| {row['low']:.1%} to {row['high']:.1%} | {row['chance']:.1%} | {row['pictured']:.1%} "
            f"| {row['well_formed']:.1%} |"
        )
    return "\n".join(lines)


def summary(predictions: list[dict]) -> dict:
    """What `report.json` says of the answers: the table; counts and ids of what went wrong; the latents."""
    answered = [row for row in predictions if row["response"] is not None]
    pictured = [row for row in answered if row["num_latents"]]
    num_latents = sum(row["num_latents"] for row in pictured)
    return {
        "table": accuracy_table(predictions),
        "unread": {row["id"]: row["reason"] for row in predictions if row["response"] is None},
        "format_failures": {
            "not_well_formed": sum(not row["well_formed"] for row in answered),
            "cut_by_max_new_tokens": sum(row["truncated"] for row in answered),
            "names_no_option": sum(row["prediction"] is None for row in answered),
        },
        "latents": {
            "mental_images": sum(row["num_images"] for row in answered),
            "per_answer": sum(row["num_images"] for row in answered) / max(len(answered), 1),
            "vectors": num_latents,
            "mean_norm": sum(row["latent_norm"] * row["num_latents"] for row in pictured) / max(num_latents, 1),
        },
        "near_ties": [row["id"] for row in answered if row["margin"] is not None and row["margin"] < NEAR_TIE],
    }


def format_report(report: dict) -> str:
    """`report.json` as Markdown, for a person."""
    settings, failures, latents = report["settings"], report["format_failures"], report["latents"]
    facts = [
        f"Replies that are not well-formed: {failures['not_well_formed']}; cut by the limit of "
        f"{settings['max_new_tokens']} new tokens: {failures['cut_by_max_new_tokens']}; that name no option: "
        f"{failures['names_no_option']}.",
        f"Mental images: {latents['mental_images']}, {latents['per_answer']:.2f} an answer; {latents['vectors']} "
        f"vectors of mean length {latents['mean_norm']:.3g}.",
        _listed("Questions whose video could not be read, counted as wrong", report["unread"]),
        _listed(f"Answers whose two best scores once lay within {NEAR_TIE:g}", report["near_ties"]),
    ]
    values = [f"| {name} | {value} |" for part in ("settings", "this_call") for name, value in report[part].items()]
    return "\n".join(
        [
            f"# {settings['benchmark']}, {settings['probe']}",
            "",
            format_table(report["table"]),
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "| setting | value |",
            "| --- | --- |",
            *values,
            "",
        ]
    )


def _listed(what: str, ids) -> str:
    """How many, and the first of them: `report.json` has all."""
    more = ["..."] if len(ids) > 20 else []
    return f"{what}: {', '.join([str(len(ids)), *list(ids)[:20], *more])}."


def _summary(rows: list[dict]) -> dict:
    total, correct = len(rows), sum(row["correct"] for row in rows)
    low, high = wilson_interval(correct, total)
    return {
        "num": total,
        "correct": correct,
        "accuracy": correct / total,
        "low": low,
        "high": high,
        "chance": sum(1 / row["num_options"] for row in rows) / total,
        "pictured": sum(row["num_images"] > 0 for row in rows) / total,
        "well_formed": sum(row["well_formed"] for row in rows) / total,
    }


def _mean(tasks: list[dict]) -> dict:
    names = ("accuracy", "chance", "pictured", "well_formed")
    mean = {name: sum(task[name] for task in tasks) / len(tasks) for name in names}
    down = sum((task["accuracy"] - task["low"]) ** 2 for task in tasks) ** 0.5 / len(tasks)
    up = sum((task["high"] - task["accuracy"]) ** 2 for task in tasks) ** 0.5 / len(tasks)
    counts = {name: sum(task[name] for task in tasks) for name in ("num", "correct")}
    return {**counts, **mean, "low": mean["accuracy"] - down, "high": mean["accuracy"] + up}
