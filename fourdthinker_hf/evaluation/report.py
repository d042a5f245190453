"""Accuracies with 95% intervals, per task and pooled."""

from collections import defaultdict


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); `z` = 1.96 for 95%. `ValueError` if `total` is 0."""
    if total < 1:
        raise ValueError("An interval needs at least one answer")
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_table(predictions: list[dict]) -> dict[str, dict]:
    """Per task and `"pooled"`: `num`, `correct`, `accuracy`, `low`, `high` (95%), and the shares of answers that
    `pictured` at least one mental image and that were `well_formed`."""
    tasks = defaultdict(list)
    for row in predictions:
        tasks[row["task"]].append(row)
    return {name: _summary(rows) for name, rows in [*sorted(tasks.items()), ("pooled", predictions)]}


def format_table(table: dict[str, dict]) -> str:
    """The table as Markdown."""
    lines = [
        "| task | questions | accuracy | 95% interval | pictured | well-formed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in table.items():
        lines.append(
            f"| {name} | {row['num']} | {row['accuracy']:.1%} | {row['low']:.1%} to {row['high']:.1%} "
            f"| {row['pictured']:.1%} | {row['well_formed']:.1%} |"
        )
    return "\n".join(lines)


def _summary(rows: list[dict]) -> dict:
    total, correct = len(rows), sum(row["correct"] for row in rows)
    low, high = wilson_interval(correct, total)
    return {
        "num": total, "correct": correct, "accuracy": correct / total, "low": low, "high": high,
        "pictured": sum(row["num_images"] > 0 for row in rows) / total,
        "well_formed": sum(row["well_formed"] for row in rows) / total,
    }  # fmt: skip
