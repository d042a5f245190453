"""How replies begin: a video is decoded and encoded once, a prompt run once, its cache repeated for each reply."""

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.records import Record, RecordError, open_frames
from ..evaluation.runner import batch_inputs
from ..modeling_fourdthinker import CACHE
from .collator import CLIP


@torch.no_grad()
def start_replies(network, processor, rows: list[dict], which: torch.LongTensor) -> tuple[dict, list[torch.Tensor]]:
    """What `generate` goes on from, and each row's video as features `(n, hidden)`, shared by rows about one video.

    `rows` are those of [`question_dataset`], each a prompt; `which` `(replies,)`, on the network's device, says which
    of them each reply is to. `RecordError`, with file and line, if a video cannot be read.
    """
    inputs, features = encode(network, processor, rows)
    output = network(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=inputs["attention_mask"][:, :-1],
        position_ids=inputs["position_ids"][..., :-1],
        mm_encoder_outputs=as_encoded(features),
        logits_to_keep=1,
        use_cache=True,
    )
    cache = output[CACHE]  # of the prompts but for their last tokens, which `generate` runs for each reply
    cache.batch_select_indices(which)
    repeated = {name: v[:, which] if name == "position_ids" else v[which] for name, v in inputs.items()}
    return repeated | {CACHE: cache}, features


def encode(network, processor, rows: list[dict]) -> tuple[dict, list[torch.Tensor]]:
    """Left-padded prompts, as in evaluation, with their positions `(4, rows, seq)`, and their videos' features."""
    clips = {}
    for row in rows:
        if (key := _clip_key(row)) not in clips:
            try:
                clips[key] = open_frames(processor, *(row[name] for name in CLIP))
            except (ValueError, OSError) as error:
                raise RecordError(f"{row['where']}: {error}") from error
    keys = [_clip_key(row) for row in rows]
    records = [Record(row["id"], row["question"], row["answer"], row["options"]) for row in rows]
    inputs = dict(batch_inputs(processor, records, clips=[clips[key] for key in keys]).to(network.device))
    grids = inputs["video_grid_thw"]
    patches = inputs.pop("pixel_values_videos").split(grids.prod(-1).tolist())
    first = [keys.index(key) for key in clips]
    encoded = network.model.get_video_features(torch.cat([patches[i] for i in first]), grids[first])
    features = dict(zip(clips, encoded.pooler_output, strict=True))
    positions, _ = network.model.get_rope_index(**inputs)
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    inputs["position_ids"] = torch.cat([places[None], positions])
    return inputs, [features[key] for key in keys]


def as_encoded(features: list[torch.Tensor]) -> dict:
    """The model's `mm_encoder_outputs` for a batch of videos."""
    return {"video": BaseModelOutputWithPooling(pooler_output=features)}


def up_to_end(ids: torch.LongTensor, ends: list[int]) -> torch.LongTensor:
    """A reply `(length,)` up to its first end, that included; whole if it has none."""
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device))
    return ids[: int(is_end.int().argmax()) + 1] if is_end.any() else ids


def _clip_key(row: dict):
    return row["video"] or (*row["frames"], *(row["timestamps"] or ()))
