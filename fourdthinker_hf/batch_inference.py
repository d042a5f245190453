"""Lets a model answer many questions in batches. Evaluation, filtering and both trainers use these functions.

- [`batch_inputs`] makes the prompts, [`answer_batch`] generates a greedy reply to each, and [`likeliest_option`] finds
  the likeliest option for a reply whose words name none.
- [`prefill_prompts`] prepares several sampled replies to each prompt: a video is decoded and encoded once, a prompt is
  run once, and its cache is repeated for each reply. [`generate_with`] then samples them, and [`trim_reply`] cuts a
  reply at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .data.records import Record, RecordError, open_frames
from .generation_fourdthinker import CACHE_NAME, BlockLogitsProcessor, end_of_first_images
from .latent_hooks import blocks_of
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .option_scores import option_probabilities
from .processing_fourdthinker import FourDThinkerProcessor

Clip = tuple[np.ndarray, np.ndarray]  # frames (T, H, W, 3) uint8, and their times (T,) in seconds


@dataclass
class Reply:
    """What the model wrote for one question. `images` are its mental images, each `(latents, hidden)`; `margin` is
    the smallest difference between the two best scores over all tokens that were not forced; `ids` are its tokens."""

    text: str
    num_tokens: int
    truncated: bool
    images: list[torch.Tensor]
    margin: float
    ids: list[int] = field(default_factory=list)


# Prompts


def open_clip(processor: FourDThinkerProcessor, record: Record) -> Clip:
    """Opens the frames of a record and their times with [`open_frames`]."""
    return open_frames(processor, record.video, record.frames, record.timestamps)


def batch_inputs(
    processor: FourDThinkerProcessor,
    records: list[Record],
    clips: list[Clip] | None = None,
    change_video: Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None = None,
):
    """The model's inputs for the left-padded prompts of `records`.

    `clips` are opened if they are not given. `change_video(frames, timestamps)` returns the frames to show instead, or
    `None` to show no video.
    """
    clips = clips or [open_clip(processor, record) for record in records]
    conversations, times = [], []
    for record, (frames, timestamps) in zip(records, clips, strict=True):
        shown = frames if change_video is None else change_video(frames, timestamps)
        messages = processor.conversation(shown, record.question, record.options)
        if shown is None:
            messages[0]["content"] = messages[0]["content"][1:]
        else:
            times.append(timestamps)
        conversations.append(messages)
    settings = {"padding": True, "padding_side": "left"} | ({"video_timestamps": times} if times else {})
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        processor_kwargs=settings,
    )


# Greedy replies


class ScoreMargins(LogitsProcessor):
    """Changes no score. Keeps for each row the smallest difference between the two best scores of a step, as greedy
    decoding sees them; at a forced token the difference is infinite. With `forget_video` the reply is decoded in two
    parts, see `generate`."""

    def __init__(self, network: FourDThinkerForConditionalGeneration, forget_video: bool):
        self.forget_video = forget_video
        self.config, self.ends = network.config, torch.tensor(network.generation_config.eos_token_id)
        self.block_processor = BlockLogitsProcessor(network.config, network.config.latent_early_end, greedy=True)
        self.smallest, self.prompt_length, self.length = None, 0, 0  # smallest: (rows,)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] != self.length + 1:  # a part begins
            self.prompt_length = input_ids.shape[1]
            if self.smallest is None:
                self.smallest = torch.full_like(scores[:, 0], torch.inf)
                self.is_done = torch.zeros_like(self.smallest, dtype=torch.bool)
            else:
                self.is_done, self.forget_video = input_ids[:, -1] != self.config.latent_end_id, False
        self.length = input_ids.shape[1]
        best = self.block_processor(input_ids, scores).topk(2).values
        new = input_ids[:, self.prompt_length :]
        self.is_done = self.is_done | torch.isin(new[:, -1:], self.ends.to(new)).any(1)
        if self.forget_video:  # while a row waits for the others it writes tokens that will be dropped
            self.is_done = self.is_done | (end_of_first_images(new, self.config) > 0)
        smaller = torch.minimum(self.smallest, best[:, 0] - best[:, 1])
        self.smallest = torch.where(self.is_done, self.smallest, smaller)
        return scores


def answer_batch(network, processor, inputs, max_new_tokens: int, **kwargs) -> list[Reply]:
    """Greedy replies to a batch of prompts, the `inputs` of [`batch_inputs`]; `kwargs` go to `generate`."""
    margins = ScoreMargins(network, kwargs.get("forget_video", network.config.forget_video))
    exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        output = network.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([margins]),
            **kwargs,
        )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    replies = []
    for row, latents, margin in zip(new, output.latents, margins.smallest.tolist(), strict=True):
        reply = trim_reply(row, margins.ends)
        is_ended = bool(torch.isin(reply[-1], margins.ends.to(row)))
        images = blocks_of(row, latents, network.config)
        text, ids = processor.decode_with_images(row), reply.tolist()
        replies.append(Reply(text, len(reply), not is_ended, images, margin, ids))
    return replies


@torch.inference_mode()
def likeliest_option(
    network, processor, inputs, row: int, reply: Reply, options: Sequence[str], latents_see_video: bool = True
) -> int:
    """The index of the option that is likeliest where a reply gives its answer, see [`option_probabilities`]. `inputs`
    are those of [`batch_inputs`], in which the reply's prompt has the number `row`; the result does not depend on the
    other rows."""
    prompt, features = {"input_ids": inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]}, None
    if "video_grid_thw" in inputs:
        grids = inputs["video_grid_thw"]
        patches = inputs["pixel_values_videos"].split(grids.prod(-1).tolist())[row]
        prompt |= {name: inputs[name][row : row + 1] for name in ("video_grid_thw", "second_per_grid_ts")}
        features = network.model.get_video_features(patches, grids[row : row + 1]).pooler_output[0]
    latents = torch.cat(reply.images) if reply.images else torch.empty(0, network.config.text_config.hidden_size)
    found = option_probabilities(network, processor, prompt, features, reply.ids, latents, options, latents_see_video)
    return found.index(max(found))


# Several sampled replies to each prompt


@torch.no_grad()
def prefill_prompts(
    network, processor, rows: list[dict], reply_to: torch.LongTensor
) -> tuple[dict, list[torch.Tensor]]:
    """The inputs from which `generate` continues, with the prompts' cache; and for each row the features `(n, hidden)`
    of its video, shared by rows about the same video.

    `rows` are those of `question_dataset`, one prompt each; a row with a `clip` is not opened again. `reply_to`
    `(replies,)`, on the network's device, holds for each reply the number of its prompt. Raises `RecordError`, with
    file and line, if a video cannot be read.
    """
    inputs, features = encode_prompts(network, processor, rows)
    return prefill(network, inputs, features, reply_to), features


def prefill(network, inputs: dict, features: list[torch.Tensor], reply_to: torch.LongTensor) -> dict:
    """Runs the prompts `inputs`, whose videos have `features`, and repeats them with their cache for the replies."""
    output = network(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=inputs["attention_mask"][:, :-1],
        position_ids=inputs["position_ids"][..., :-1],
        mm_encoder_outputs=encoder_outputs(features),
        logits_to_keep=1,
        use_cache=True,
    )
    cache = output[CACHE_NAME]  # of the prompts without their last tokens, which `generate` runs for each reply
    cache.batch_select_indices(reply_to)
    repeated = {name: v[:, reply_to] if name == "position_ids" else v[reply_to] for name, v in inputs.items()}
    return repeated | {CACHE_NAME: cache}


def encode_prompts(network, processor, rows: list[dict]) -> tuple[dict, list[torch.Tensor]]:
    """The inputs of left-padded prompts, as in evaluation, with their positions `(4, rows, seq)` in place of pixels,
    and the features `(n, hidden)` of each row's video."""
    clips = {}
    for row in rows:
        if (key := _clip_key(row)) not in clips:
            try:
                clips[key] = row.get("clip") or open_frames(processor, row["video"], row["frames"], row["timestamps"])
            except (ValueError, OSError) as error:
                raise RecordError(f"{row['where']}: {error}") from error
    keys = [_clip_key(row) for row in rows]
    records = [Record(row["id"], row["question"], row["answer"], row["options"]) for row in rows]
    inputs = dict(batch_inputs(processor, records, [clips[key] for key in keys]).to(network.device))
    grids = inputs["video_grid_thw"]
    patches = inputs.pop("pixel_values_videos").split(grids.prod(-1).tolist())
    first = [keys.index(key) for key in clips]  # the first row about each video
    encoded = network.model.get_video_features(torch.cat([patches[i] for i in first]), grids[first])
    features = dict(zip(clips, encoded.pooler_output, strict=True))
    positions, _ = network.model.get_rope_index(**inputs)
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    inputs["position_ids"] = torch.cat([places[None], positions])
    return inputs, [features[key] for key in keys]


def encoder_outputs(features: list[torch.Tensor]) -> dict:
    """The model's argument `mm_encoder_outputs` for videos with these `features`, each `(n, hidden)`."""
    return {"video": BaseModelOutputWithPooling(pooler_output=features)}


def generate_with(network, generation_config: GenerationConfig, inputs: dict):
    """Generates with `generation_config` alone. `generate(generation_config=...)` would fill in what that leaves open
    from the checkpoint's own settings."""
    own, network.generation_config = network.generation_config, generation_config
    try:
        return network.generate(**inputs)
    finally:
        network.generation_config = own


def trim_reply(ids: torch.LongTensor, ends: list[int] | torch.LongTensor) -> torch.LongTensor:
    """A reply `(length,)` up to and including its first end-of-text token; the whole reply if it has none."""
    is_end = torch.isin(ids, torch.as_tensor(ends, device=ids.device))
    return ids[: int(is_end.int().argmax()) + 1] if is_end.any() else ids


def _clip_key(row: dict):
    return row["video"] or (*row["frames"], *(row["timestamps"] or ()))
