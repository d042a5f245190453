"""Decodes mental images in plain Python and without a cache. Tests compare `generate` with it."""

import numpy as np
import torch
from transformers import LogitsProcessor

TOLERANCE = 1e-5  # on logits and latents, in fp32
STEPS = 16


def prompts(processor, lengths, kind="video", questions=range(9)):
    """A left-padded batch of questions, each about a video of `lengths` frames, about its first frame as an image, or
    about neither (`kind`)."""
    frames = [np.random.default_rng(n).integers(0, 255, (n, 56, 84, 3), dtype=np.uint8) for n in lengths]
    placeholder = {"video": "<|video_pad|>", "image": "<|image_pad|>", "text": ""}[kind]
    words = ("where", "which way does it move", "A. left")
    texts = [f"<|im_start|>{placeholder}{words[i % 3]}<|im_end|>" for i, _ in zip(questions, lengths, strict=False)]
    media = {
        "video": {"videos": frames, "video_timestamps": [[0.5 * i for i in range(n)] for n in lengths]},
        "image": {"images": [[video[0]] for video in frames]},
        "text": {},
    }[kind]
    return processor(text=texts, **media, padding=True, padding_side="left", return_tensors="pt")


class Force(LogitsProcessor):
    """Forces the token `schedule[row, step]` and forbids `banned` at all other steps: by default the tokens that end a
    row, stand for a picture or video, or open a block."""

    def __init__(self, model, prompt_length, schedule, banned=None):
        config = model.config
        self.prompt_length, self.schedule = prompt_length, schedule
        default = [
            config.text_config.eos_token_id,
            config.image_token_id,
            config.video_token_id,
            config.latent_start_id,
        ]
        self.banned = default if banned is None else banned

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.banned] = -torch.inf
        for (row, at), token in self.schedule.items():
            if at == input_ids.shape[1] - self.prompt_length and row < len(scores):
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores


def single(inputs, row):
    """One row of a batch, unpadded."""
    keep = inputs["attention_mask"][row].bool()
    one = {"input_ids": inputs["input_ids"][row : row + 1, keep]}
    for pixels, grid in (("pixel_values_videos", "video_grid_thw"), ("pixel_values", "image_grid_thw")):
        if grid in inputs:
            sizes = inputs[grid].prod(1).tolist()
            one[pixels] = inputs[pixels][sum(sizes[:row]) : sum(sizes[: row + 1])]
            one[grid] = inputs[grid][row : row + 1]
    if "second_per_grid_ts" in inputs:
        one["second_per_grid_ts"] = inputs["second_per_grid_ts"][row : row + 1]
    if "latent_embeds" in inputs:
        one["latent_embeds"] = inputs["latent_embeds"][row : row + 1, keep]
    return one


def reference(model, one, choose, steps, early_end=False, hook=None, see_video=True):
    """Decodes one row; the whole sequence is computed again for each token.

    `choose(ids (1, seq), scores (1, vocab)) -> scores` is what the logits processors do; `hook(latent (hidden,),
    block, slot) -> latent` what a `latent_hook` does; without `see_video`, new latents do not attend to the video.
    Returns tokens, logits `(steps, vocab)` and the vector to feed for each token if it is a pad, `(steps, hidden)`.
    """
    config, ids, new, logits, vectors = model.config, one["input_ids"], [], [], []
    latents = one.get("latent_embeds", torch.zeros(1, ids.shape[1], config.text_config.hidden_size, dtype=model.dtype))
    for _ in range(steps):
        now = {**one, "input_ids": ids, "latent_embeds": latents}
        if not see_video:
            types, is_new_latent = model.model.get_mm_token_type_ids(ids)[0], ids[0] == config.latent_token_id
            is_new_latent[: one["input_ids"].shape[1]] = False
            vision = {name: one[name] for name in ("video_grid_thw", "second_per_grid_ts")}
            now["position_ids"], _ = model.model.get_rope_index(ids, **vision)
            seen = torch.ones(len(types), len(types)).tril().bool() & ~(is_new_latent[:, None] & (types > 0))
            now["attention_mask"] = seen[None, None]
        with torch.no_grad():
            now = model(**now, use_cache=False)
        tail = (one["input_ids"][0].tolist() + new)[::-1]
        pads = next((i for i, token in enumerate(tail) if token != config.latent_token_id), len(tail))
        scores = choose(ids, now.logits[:, -1].float()).clone()
        if pads == 0 and tail[0] != config.latent_start_id:
            scores[:, [config.latent_token_id, config.latent_end_id]] = -torch.inf
            token = int(scores.argmax())
        else:
            leave = early_end and int(scores.argmax()) == config.latent_end_id
            token = config.latent_end_id if leave or pads == config.latent_size else config.latent_token_id
        vector = model.model.scale_latents(now.last_hidden_state[0, -1])
        if hook is not None and token == config.latent_token_id:
            block = tail.count(config.latent_start_id) - 1
            vector = model.model.scale_latents(hook(vector, block, pads))
        new.append(token)
        logits.append(now.logits[0, -1])
        vectors.append(vector)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        latents = torch.cat([latents, vectors[-1][None, None]], 1)
    return new, torch.stack(logits), torch.stack(vectors)


def follow(model, one, tokens):
    """What `reference` computes when it is forced to choose `tokens`: logits and vectors."""
    rest = iter(tokens)
    forced = {"early_end": model.config.latent_end_id in tokens}

    def choose(ids, scores):
        only = torch.full_like(scores, -torch.inf)
        only[0, next(rest)] = 0
        return only

    new, logits, vectors = reference(model, one, choose, len(tokens), **forced)
    assert new == list(tokens)
    return logits, vectors


def generate(model, inputs, schedule=None, steps=STEPS, **kwargs):
    if schedule is not None:
        kwargs["logits_processor"] = [Force(model, inputs["input_ids"].shape[1], schedule)]
    kwargs = {"do_sample": False, **kwargs}
    return model.generate(**inputs, max_new_tokens=steps, return_dict_in_generate=True, output_logits=True, **kwargs)


def blocks(model, *places):
    """A schedule for [`Force`] that opens a block at each (row, step)."""
    return {place: model.config.latent_start_id for place in places}


def assert_exact(model, inputs, output, schedule, early_end=False, hooks=None, see_video=True):
    """Asserts that each row of a greedy `output` equals `reference` on that row alone, with the row's own hook."""
    prompt = inputs["input_ids"].shape[1]
    pad = model.config.latent_token_id
    for row, tokens in enumerate(output.sequences[:, prompt:].tolist()):
        one = single(inputs, row)
        mine = {(0, at): token for (r, at), token in schedule.items() if r == row}
        force = Force(model, one["input_ids"].shape[1], mine)
        hook = hooks[row] if hooks else None
        new, logits, vectors = reference(model, one, force, len(tokens), early_end, hook, see_video)
        assert tokens == new, row
        assert (torch.stack(output.logits, 1)[row, : len(tokens)] - logits).abs().max() < TOLERANCE
        is_pad = torch.tensor(tokens)[:, None] == pad
        assert (output.latents[row] - vectors.masked_fill(~is_pad, 0)).abs().max() < TOLERANCE
