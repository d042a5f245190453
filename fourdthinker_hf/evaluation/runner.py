"""Ask a model every question of a file of records, greedily, in batches.

Predictions are written as they come, so a killed run goes on where it stopped; the report is written at the end.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..answers import match_option, parse
from ..data.records import Record, read_records
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor
from .report import accuracy_table, format_table

VIDEO_MODES = ("real", "grey", "none")


def evaluate(
    model: str, benchmark: str, out: str, batch_size: int = 32, video: str = "real", max_new_tokens: int = 256
) -> dict[str, dict]:
    """Evaluate the checkpoint `model` on the records file `benchmark`; returns [`accuracy_table`].

    Writes `out/predictions.jsonl`, one line a question, and `out/report.json`. An `out` that holds predictions of the
    same run is resumed; of another run, refused. `video`: `"real"`; `"grey"` gives every question a uniform grey
    video of the same size and times; `"none"` leaves the video out of the prompt: both measure the blind model.
    """
    if video not in VIDEO_MODES:
        raise ValueError(f"video must be one of {', '.join(VIDEO_MODES)}, got {video!r}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run = {"model": str(model), "benchmark": str(benchmark), "video": video, "max_new_tokens": max_new_tokens}
    _same_run(folder / "run.json", run)
    path = folder / "predictions.jsonl"
    done = _finished_rows(path)
    network = FourDThinkerForConditionalGeneration.from_pretrained(model).eval()
    processor = FourDThinkerProcessor.from_pretrained(model)
    todo = [record for record in read_records(benchmark) if record.id not in done]
    with path.open("a") as file, tqdm(total=len(todo), unit="question") as bar:
        for first in range(0, len(todo), batch_size):
            batch = todo[first : first + batch_size]
            for record, reply in zip(
                batch, answer_batch(network, processor, batch, video, max_new_tokens), strict=True
            ):
                file.write(json.dumps(judge(record, reply)) + "\n")
            file.flush()
            bar.update(len(batch))
    table = accuracy_table(list(_finished_rows(path).values()))
    (folder / "report.json").write_text(json.dumps({**run, "table": table}, indent=1))
    (folder / "report.md").write_text(format_table(table) + "\n")
    return table


def batch_inputs(processor: FourDThinkerProcessor, records: list[Record], video: str = "real"):
    """Left-padded prompts of `records` as the model takes them."""
    texts, videos, times = [], [], []
    for record in records:
        frames, timestamps = processor.open_video(record.video)
        messages = processor.conversation(frames, record.question, record.options)
        if video == "none":
            messages[0]["content"] = messages[0]["content"][1:]
        else:
            videos.append(np.full_like(frames, 128) if video == "grey" else frames)
            times.append(timestamps)
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return processor(
        text=texts, videos=videos or None, video_timestamps=times, padding=True, padding_side="left",
        add_special_tokens=False, return_tensors="pt",
    )  # fmt: skip


def answer_batch(network, processor, records: list[Record], video: str, max_new_tokens: int) -> list[str]:
    """Replies to a batch, with `<output_image>` where a mental image stands."""
    inputs = batch_inputs(processor, records, video).to(network.device)
    with torch.inference_mode():
        tokens = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return [processor.decode_with_images(row) for row in tokens[:, inputs["input_ids"].shape[1] :]]


def judge(record: Record, reply: str) -> dict:
    """One line of `predictions.jsonl`."""
    parsed = parse(reply)
    choice, reason = match_option(parsed.answer, record.options)
    return {
        "id": record.id, "task": record.task, "reply": reply, "answer": parsed.answer, "choice": choice,
        "reason": reason, "expected": record.options.index(record.answer),
        "correct": choice is not None and record.options[choice] == record.answer,
        "num_images": reply.count(OUTPUT_IMAGE), "well_formed": parsed.well_formed,
    }  # fmt: skip


def _same_run(path: Path, run: dict) -> None:
    if path.exists():
        if (before := json.loads(path.read_text())) != run:
            raise ValueError(f"{path.parent} holds another run ({before}): choose another folder than for {run}")
        return
    path.write_text(json.dumps(run))


def _finished_rows(path: Path) -> dict[str, dict]:
    """Predictions on disk by id; a line cut by a kill is dropped from the file."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(lines))
    rows = [json.loads(line) for line in lines]
    return {row["id"]: row for row in rows}
