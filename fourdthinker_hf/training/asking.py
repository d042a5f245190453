"""Free-running answers during training, by the same path as evaluation: what the losses do not tell."""

import re
from dataclasses import dataclass, fields, replace

from ..answers import parse
from ..data.records import Record
from ..evaluation.runner import answer_batch, batch_inputs, judge, open_clip
from .feature_store import Encoded


@dataclass
class Asked:
    """A question, what the model replied, and whether that is right: it names the right option or, without options,
    its answer is the record's, letter for letter."""

    question: str
    reply: str
    expected: str
    is_right: bool


def ask_rows(network, processor, rows: list[dict], options: bool, max_new_tokens: int) -> list[Asked]:
    """Greedy replies to rows of records, opened by [`DIFTCollator.open`] or not; `options`: whether they are shown."""
    names = [field.name for field in fields(Record)]
    records = [Record(**({"id": ""} | {name: row[name] for name in names if name in row})) for row in rows]
    clips = [
        open_clip(processor, record) if isinstance(row.get("clip"), Encoded | None) else row["clip"]
        for row, record in zip(rows, records, strict=True)
    ]
    shown = records if options else [replace(record, options=None) for record in records]
    inputs = batch_inputs(processor, shown, clips=clips).to(network.device)
    asked = []
    for record, reply in zip(records, answer_batch(network, processor, inputs, max_new_tokens), strict=True):
        if record.options:
            is_right = judge(record, reply)["correct"]
        else:
            is_right = parse(reply.text).answer == record.answer
        asked.append(Asked(record.question, reply.text, record.answer, is_right))
    return asked


def samples_table(asked: list[Asked]) -> str:
    """Markdown."""
    lines = ["| question | reply | expected | |", "| --- | --- | --- | --- |"]
    for row in asked:
        cells = (row.question, row.reply, row.expected, "right" if row.is_right else "wrong")
        lines.append("| " + " | ".join(re.sub(r"\s+", " ", cell.replace("|", "/")) for cell in cells) + " |")
    return "\n".join(lines)
