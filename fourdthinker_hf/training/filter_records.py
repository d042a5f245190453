"""Questions worth training on: those that a model answers right sometimes, neither always nor never.

A group of replies that are all right, or all wrong, has no advantage, so GRPO learns nothing from it. The published
RL set was filtered so. Counts are appended to a file, a batch at a time, and the replies to a batch are drawn from a
seed of its own: a pass that was killed goes on, and leaves what it would have left.
"""

import json
import os
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from ..data.records import read_records, write_records
from ..hub.files import find_model, load_model, model_hash
from ..inference import start_replies, up_to_end
from . import rewards


def filter_records(
    records: str | os.PathLike,
    out: str | os.PathLike,
    model: str,
    samples: int = 8,
    temperature: float = 1.0,
    batch_size: int = 8,
    max_new_tokens: int = 512,
    seed: int = 0,
) -> str:
    """Write to the JSONL file `out` those of `records` of which `model` (folder or Hub id) answers one of `samples`
    replies right, and one wrong; all counts are in `out` with the ending `.counts.jsonl`.

    `batch_size` is in questions. Returns a line that says how many were kept. `ValueError` for records that one cannot
    train on, and for an `out` that another pass began.
    """
    out = Path(out)
    questions = read_records(records)
    settings = {
        "model_sha256": model_hash(find_model(model)),
        "samples": samples,
        "temperature": temperature,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "num_records": len(questions),
    }
    counts_path = out.with_suffix(".counts.jsonl")
    counts = _begin(counts_path, settings)
    batches = [range(n, min(n + batch_size, len(questions))) for n in range(0, len(questions), batch_size)]
    todo = [batch for batch in batches if not all(number in counts for number in batch)]
    if todo:
        network, processor = load_model(model)
    for batch in tqdm(todo, unit="batch", disable=None):
        rows = [{**vars(questions[n]), "where": f"{records}, record {n + 1}"} for n in batch]
        torch.manual_seed(seed + batch.start)
        replies = _sample(network, processor, rows, samples, temperature, max_new_tokens)
        with open(counts_path, "a", encoding="utf-8") as file:
            for number, row, texts in zip(batch, rows, replies, strict=True):
                right = sum(rewards.accuracy(texts, [row["answer"]] * samples, [row["options"]] * samples))
                counts[number] = int(right)
                file.write(json.dumps({"record": number, "id": row["id"], "right": int(right)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    kept = [questions[number] for number in range(len(questions)) if 0 < counts[number] < samples]
    write_records(out, kept)
    never = sum(count == 0 for count in counts.values())
    always = len(questions) - len(kept) - never
    return f"{out}: {len(kept)} of {len(questions)} records; {always} are always right, {never} never"


def _begin(path: Path, settings: dict) -> dict[int, int]:
    """Counts so far, by record. What a kill cut off is cut from the file too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if lines and lines[0] != settings:
        differs = ", ".join(name for name in settings if lines[0].get(name) != settings[name])
        raise ValueError(f"{path} holds another pass ({differs} differ): choose another file")
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(json.dumps(line) + "\n" for line in lines or [settings]), encoding="utf-8")
    os.replace(aside, path)
    return {line["record"]: line["right"] for line in lines[1:]}


@torch.no_grad()
def _sample(network, processor, rows: list[dict], samples: int, temperature: float, max_new_tokens: int):
    """`samples` replies to each of `rows`, as text."""
    ends, unsaid = network.generation_config.eos_token_id, [processor.image_token_id, processor.video_token_id]
    network.generation_config = GenerationConfig(  # nothing of the checkpoint's, as in training
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=unsaid,
    )
    which = torch.arange(len(rows), device=network.device).repeat_interleave(samples)
    inputs, _ = start_replies(network, processor, rows, which)
    new = network.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    ends = ends if isinstance(ends, list) else [ends]
    texts = [processor.decode_with_images(up_to_end(ids, ends)) for ids in new]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]
