"""Summarises a run: the accuracy of each task, over tasks (macro) and over questions (pooled), with 95% intervals, and
what went wrong."""

from collections import defaultdict

from .statistics import wilson_interval

# If the two best scores of a token are closer than this, another batch size may choose the other token.
NEAR_TIE = 1e-4
TABLE_HEAD = (
    "| task | questions | correct | accuracy | 95% interval | with fallback | 95% interval | chance | pictured "
    "| well-formed |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def accuracy_table(predictions: list[dict]) -> dict[str, dict]:
    """The table of a run, by task, and over all questions as `"pooled"` (micro).

    Each row has `num`, and for the words alone `correct`, `accuracy` and its 95% interval `low` and `high` (Wilson);
    the same with `choice_` before the name where the likeliest option stands in for words that name none; the accuracy
    of a guess as `chance`, and the shares of answers with a mental image (`pictured`) and of those that are
    `well_formed`. `"macro"` has the means over tasks, with an interval of the tasks' intervals (Zou and Donner 2008,
    for sums).
    """
    groups = defaultdict(list)
    for row in predictions:
        groups[row["task"]].append(row)
    tasks = {name: _summary(rows) for name, rows in sorted(groups.items())}
    return {**tasks, "macro": _macro(list(tasks.values())), "pooled": _summary(predictions)}


def format_table(table: dict[str, dict]) -> str:
    """The table as Markdown. A table that was stored before the fallback was measured says so."""
    names = {"macro": "macro (mean of tasks)", "pooled": "micro (pooled)"}
    lines = [TABLE_HEAD]
    for name, row in table.items():
        lines.append(
            f"| {names.get(name, name)} | {row['num']} | {row['correct']} | {row['accuracy']:.1%} "
            f"| {row['low']:.1%} to {row['high']:.1%} | {_with_fallback(row)} | {row['chance']:.1%} "
            f"| {row['pictured']:.1%} "
            f"| {row['well_formed']:.1%} |"
        )
    return "\n".join(lines)


def _with_fallback(row: dict) -> str:
    if "choice_accuracy" not in row:
        return "not measured | "
    return f"{row['choice_accuracy']:.1%} | {row['choice_low']:.1%} to {row['choice_high']:.1%}"


def summary(predictions: list[dict]) -> dict:
    """What `report.json` says about the answers: the table, counts and ids of what went wrong, and the latents."""
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
    """`report.json` as Markdown."""
    settings, failures, latents = report["settings"], report["format_failures"], report["latents"]
    facts = [
        f"Replies that are not well-formed: {failures['not_well_formed']}; replies that were cut at the limit of "
        f"{settings['max_new_tokens']} new tokens: {failures['cut_by_max_new_tokens']}; replies that name no option: "
        f"{failures['names_no_option']}.",
        f"Mental images: {latents['mental_images']}, which is {latents['per_answer']:.2f} for each answer, with "
        f"{latents['vectors']} latents of mean norm {latents['mean_norm']:.3g}.",
        _listed("Questions that cannot be asked, left out", report["left_out"]),
        _listed("Questions whose video could not be read, counted as wrong", report["unread"]),
        _listed(f"Answers with a token whose two best scores differ by less than {NEAR_TIE:g}", report["near_ties"]),
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
    """Their number and the first 20 of them. `report.json` has all."""
    more = ["..."] if len(ids) > 20 else []
    return f"{what}: {', '.join([str(len(ids)), *list(ids)[:20], *more])}."


def _summary(rows: list[dict]) -> dict:
    total = len(rows)
    return {
        "num": total,
        **_accuracy([row["correct"] for row in rows]),
        **{f"choice_{name}": value for name, value in _accuracy([row["choice_correct"] for row in rows]).items()},
        "chance": sum(1 / row["num_options"] for row in rows) / total,
        "pictured": sum(row["num_images"] > 0 for row in rows) / total,
        "well_formed": sum(row["well_formed"] for row in rows) / total,
    }


def _accuracy(is_right: list[bool]) -> dict:
    low, high = wilson_interval(sum(is_right), len(is_right))
    return {"correct": sum(is_right), "accuracy": sum(is_right) / len(is_right), "low": low, "high": high}


def _macro(tasks: list[dict]) -> dict:
    names = ("accuracy", "choice_accuracy", "chance", "pictured", "well_formed")
    mean = {name: sum(task[name] for task in tasks) / len(tasks) for name in names}
    counts = {name: sum(task[name] for task in tasks) for name in ("num", "correct", "choice_correct")}
    return {**counts, **mean, **_joined_interval(tasks, ""), **_joined_interval(tasks, "choice_")}


def _joined_interval(tasks: list[dict], kind: str) -> dict:
    mean = sum(task[f"{kind}accuracy"] for task in tasks) / len(tasks)
    down, up = (
        sum((task[f"{kind}accuracy"] - task[f"{kind}{end}"]) ** 2 for task in tasks) ** 0.5 / len(tasks)
        for end in ("low", "high")
    )
    return {f"{kind}low": mean - down, f"{kind}high": mean + up}
