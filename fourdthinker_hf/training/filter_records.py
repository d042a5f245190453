"""Keeps the questions that are worth training on: those that a model answers right sometimes, not always or never.

Replies that are all right, or all wrong, have no advantage over one another, so GRPO learns nothing from them. The
published RL set was filtered in this way. The counts are appended to a file after each batch, and each batch has its
own seed, so a filter run that was killed continues where it stopped and gives the result of an uninterrupted one. A
record that cannot be used is left out and named; the next run asks it, and its batch, again if its video can be read.
"""

import contextlib
import json
import os
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from ..answers import judge
from ..batch_inference import generate_with, open_clip, prefill_prompts, trim_reply
from ..checkpoints import (
    check_device,
    check_dtype,
    find_base,
    find_model,
    has_processor,
    load_model,
    load_processor,
    model_hash,
    read_json,
)
from ..data.records import RecordError, RecordFiles, write_records


def filter_records(
    records: str | os.PathLike,
    out: str | os.PathLike,
    model: str,
    samples: int = 8,
    temperature: float = 1.0,
    batch_size: int = 8,
    max_new_tokens: int = 512,
    seed: int = 0,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> tuple[str, list[str]]:
    """Writes to the JSONL file `out` those of `records` for which at least one of `samples` replies of `model` (folder
    or Hub id) is right and at least one is wrong. The counts of all records go to `out` with the ending
    `.counts.jsonl`.

    `batch_size` is in questions; `revision`, `subfolder`, `dtype` and `device` are as in [`load_model`]. Returns a
    line that says how many were kept, and for each record that cannot be trained on or whose video cannot be read, a
    message with file, line and reason. Raises `ValueError` if there is no usable record, for a model with
    `forget_video`, and for an `out` that belongs to another filter run.
    """
    check_device(device), check_dtype(dtype)
    folder = find_model(model, revision, subfolder)
    _refuse_forget_video(model, folder)
    out = Path(out)
    files = RecordFiles([records])
    questions, locations, left_out = [], [], []
    for index in range(len(files)):
        try:
            questions.append(files[index])
            locations.append(files.location(index))
        except RecordError as error:
            left_out.append(str(error))
    if not questions:
        raise ValueError("; ".join([f"{records} has no record that can be used", *left_out]))
    settings = {
        "model_sha256": model_hash(folder),
        "samples": samples,
        "temperature": temperature,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "num_records": len(questions),
    }
    counts_path = out.with_suffix(".counts.jsonl")
    counts = _read_counts(counts_path, settings)
    if unread := [number for number, count in counts.items() if count["right"] is None]:
        processor = load_processor(folder if has_processor(folder) else find_base(folder))
        for number in unread:
            with contextlib.suppress(ValueError, OSError):
                open_clip(processor, questions[number])
                del counts[number]
    batches = [range(n, min(n + batch_size, len(questions))) for n in range(0, len(questions), batch_size)]
    unfinished = [batch for batch in batches if not all(number in counts for number in batch)]
    if unfinished:
        network, processor = load_model(folder, device, dtype)
    for batch in tqdm(unfinished, unit="batch", disable=None):
        found, clips = {}, {}
        for number in batch:
            question = questions[number]
            video = question.video or (*question.frames, *(question.timestamps or ()))
            try:
                if video not in clips:
                    clips[video] = open_clip(processor, question)
                found[number] = {**vars(question), "where": locations[number], "clip": clips[video]}
            except (ValueError, OSError) as error:
                counts[number] = {"record": number, "id": question.id, "right": None, "reason": str(error)}
        torch.manual_seed(seed + batch.start)
        rows = list(found.values())
        replies = _sample_replies(network, processor, rows, samples, temperature, max_new_tokens) if rows else []
        for (number, row), texts in zip(found.items(), replies, strict=True):
            right = sum(judge(text, row["answer"], row["options"]).is_right for text in texts)
            counts[number] = {"record": number, "id": row["id"], "right": right}
        with open(counts_path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(counts[number]) + "\n" for number in batch)
            file.flush()
            os.fsync(file.fileno())
    right = [counts[number]["right"] for number in range(len(questions))]
    left_out += [f"{locations[n]}: {counts[n]['reason']}" for n in range(len(questions)) if right[n] is None]
    kept = [question for question, count in zip(questions, right, strict=True) if count and count < samples]
    write_records(out, kept)
    always, never = right.count(samples), right.count(0)
    line = f"{out}: {len(kept)} of {len(files)} records; {always} are always right, {never} never"
    return line + (f", {len(left_out)} cannot be used" if left_out else ""), left_out


def _refuse_forget_video(model: str, folder: Path) -> None:
    """Raises `ValueError` for a model with `forget_video`. Reads only its config.json."""
    if read_json((find_base(folder) or folder) / "config.json").get("forget_video"):
        raise ValueError(
            f"{model}: config.json has forget_video, and the replies of such a model cannot be sampled in groups. "
            "Filter with the checkpoint that 4DRL starts from, one without forget_video"
        )


def _read_counts(path: Path, settings: dict) -> dict[int, dict]:
    """The lines of `path` so far, by record number: `right` is the number of right replies, or None with a `reason`. A
    half-written last line is also removed from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if lines and lines[0] != settings:
        differing = ", ".join(name for name in settings if lines[0].get(name) != settings[name])
        raise ValueError(f"{path} holds another filter run with different {differing}: choose another output file")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines or [settings]), encoding="utf-8")
    os.replace(temporary, path)
    return {line["record"]: line for line in lines[1:]}


@torch.no_grad()
def _sample_replies(network, processor, rows: list[dict], samples: int, temperature: float, max_new_tokens: int):
    """The texts of `samples` replies to each of `rows`, sampled as in training: without the checkpoint's settings."""
    ends = network.generation_config.eos_token_id
    generation_config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=[processor.image_token_id, processor.video_token_id],
    )
    reply_to = torch.arange(len(rows), device=network.device).repeat_interleave(samples)
    inputs, _ = prefill_prompts(network, processor, rows, reply_to)
    new = generate_with(network, generation_config, inputs)[:, inputs["input_ids"].shape[1] :]
    texts = [processor.decode_with_images(trim_reply(ids, ends)) for ids in new]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]
