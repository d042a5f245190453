"""Keeps the questions that are worth training on: those that a model answers right sometimes, not always or never.

Replies that are all right, or all wrong, have no advantage over one another, so GRPO learns nothing from them. The
published RL set was filtered in this way. The counts are appended to a file after each batch, and each batch has its
own seed, so a filter run that was killed continues where it stopped and gives the result of an uninterrupted one. A
record that cannot be used is left out and named; the next run asks it, and its batch, again if its video can be read.
"""

import contextlib
import glob
import json
import os
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from ..answers import judge
from ..batch_inference import generate_with, open_clip, prefill_prompts, trim_reply
from ..checkpoints import (
    check_dtype,
    find_base,
    find_model,
    has_processor,
    load_model,
    load_processor,
    model_hash,
    read_json,
)
from ..data.records import RecordError, RecordFiles, check_same_clip, clip_hash, records_hash, write_records
from ..distributed import DistributedState
from ..output_files import append_lines, claim, read_lines, versions, write_whole


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
) -> tuple[str, list[str]] | None:
    """Writes to the JSONL file `out` those of `records` for which at least one of `samples` replies of `model` (folder
    or Hub id) is right and at least one is wrong. The counts of all records go to `out` with the ending
    `.counts.jsonl`, and what they depend on with the ending `.work.json`.

    `batch_size` is in questions; `revision`, `subfolder`, `dtype` and `device` are as in [`load_model`]. Returns a
    line that says how many were kept, and for each record that cannot be trained on or whose video cannot be read, a
    message with file, line and reason. The processes that `accelerate launch` started share the batches; only the main
    one returns something. Raises `ValueError` if there is no usable record, for a model with `forget_video`, and for
    an `out` that belongs to another filter run.
    """
    distributed = DistributedState(device)
    check_dtype(dtype)
    folder = find_model(model, revision, subfolder)
    _refuse_forget_video(model, folder)
    files = RecordFiles([records])
    out = Path(out)
    questions, locations, left_out = [], [], []
    for index in range(len(files)):
        try:
            questions.append(files[index])
            locations.append(files.location(index))
        except RecordError as error:
            left_out.append(str(error))
    if not questions:
        raise ValueError("; ".join([f"{records} has no record that can be used", *left_out]))
    work = {
        "command": "filter",
        "model_sha256": model_hash(folder),
        "records_sha256": records_hash(questions),
        "dtype": dtype,
        "samples": samples,
        "temperature": temperature,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        **versions("torch", "transformers"),
    }
    counts_path, is_main = out.with_suffix(".counts.jsonl"), distributed.is_main_process
    with claim(out.with_suffix(".work.json"), work, [out, counts_path]) if is_main else contextlib.nullcontext():
        if is_main:
            counts = _merge_counts(counts_path)
            if unread := [number for number, count in counts.items() if count["right"] is None]:
                processor = load_processor(folder if has_processor(folder) else find_base(folder))
                for number in unread:
                    with contextlib.suppress(ValueError, OSError):
                        open_clip(processor, questions[number])
                        del counts[number]
            for number, count in counts.items():
                check_same_clip(questions[number], count.get("clip_sha256"), counts_path)
            _write_counts(counts_path, counts)
        distributed.wait_for_everyone()
        counts = _read_counts(counts_path)
        distributed.wait_for_everyone()  # no process may write before all have read
        batches = [range(n, min(n + batch_size, len(questions))) for n in range(0, len(questions), batch_size)]
        unfinished = [batch for batch in batches if not all(number in counts for number in batch)]
        share = unfinished[distributed.rank :: distributed.world_size]
        own_path = counts_path if is_main else _part_path(counts_path, distributed.rank)
        if share:
            network, processor = load_model(folder, distributed.device, dtype)
        for batch in tqdm(share, unit="batch", disable=None if is_main else True):
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
                clip = clip_hash(questions[number])
                counts[number] = {"record": number, "id": row["id"], "right": right, "clip_sha256": clip}
            append_lines(own_path, [json.dumps(counts[number]) for number in batch])
        distributed.wait_for_everyone()
        if not is_main:
            return None
        counts = _merge_counts(counts_path)
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


def _part_path(path: Path, rank: int | str) -> Path:
    """Where a process that is not the main one writes its counts."""
    return path.with_name(f"{path.name}.part{rank}")


def _merge_counts(path: Path) -> dict[int, dict]:
    """Merges what all processes wrote into `path`, in the order of the records, and returns it as [`_read_counts`]
    does."""
    parts = sorted(path.parent.glob(_part_path(Path(glob.escape(path.name)), "*").name))
    counts = {number: count for source in (path, *parts) for number, count in _read_counts(source).items()}
    _write_counts(path, counts)
    for part in parts:
        part.unlink()
    return counts


def _write_counts(path: Path, counts: dict[int, dict]) -> None:
    write_whole(path, "".join(json.dumps(counts[number]) + "\n" for number in sorted(counts)), claimed=True)


def _read_counts(path: Path) -> dict[int, dict]:
    """The lines of a file by record number: `right` is the number of right replies, or None with a `reason`."""
    return {line["record"]: line for line in map(json.loads, read_lines(path))}


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
