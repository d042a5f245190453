"""How likely a model finds each option at the place where its reply gives the answer.

An option's probability is the softmax over the options' scores: the log-likelihoods per token of what stands in
`<answer>`. It is the options' letters that are scored if the reply answers with a letter, else their texts. In a reply
without an `<answer>` the place is its end, after `</think>` and `<answer>` have been added, and the letters or the
texts are scored, whichever of them has the likeliest candidate.

The reply is run again with the latents that were fed, so the scores are those that the model had while it wrote.
"""

import re
import string
from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .generation_fourdthinker import end_of_first_images
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import FourDThinkerProcessor

ANSWER_START, ANSWER_END = "<answer>", "</answer>"
LETTER = re.compile(r"[(\[]?(?=[A-Z](?:[)\].:]|\s*$))")  # what precedes a letter that stands alone


def encoder_outputs(features: torch.Tensor, num_rows: int) -> dict:
    """The features `(n, hidden)` of a video as the model's `mm_encoder_outputs`, for rows about the same video."""
    return {"video": BaseModelOutputWithPooling(pooler_output=(features,) * num_rows)}


def option_probabilities(
    network: FourDThinkerForConditionalGeneration,
    processor: FourDThinkerProcessor,
    prompt: dict[str, torch.Tensor],
    features: torch.Tensor | None,
    ids: Sequence[int],
    latents: torch.Tensor,
    options: Sequence[str],
    latents_see_video: bool = True,
) -> list[float]:
    """The probability of each of `options`, given a reply.

    Args:
        prompt: `input_ids` `(1, length)` without padding and, of a prompt with a video, `video_grid_thw` and
            `second_per_grid_ts`.
        features: `(n, hidden)`, what the vision tower returns for the video; None without a video.
        ids: the tokens of the reply.
        latents: `(num, hidden)`, the vectors that were fed for its `<|latent_pad|>`s, in order.
        latents_see_video: as `generate` was called.
    """
    config = network.config
    place = _AnswerPlace(processor, config, list(ids))
    letters, texts = list(string.ascii_uppercase[: len(options)]), [f"{option}{ANSWER_END}" for option in options]
    if place.is_letter is None:
        candidates = [f"{letter}{ANSWER_END}" for letter in letters] + texts
    else:
        candidates = letters if place.is_letter else texts
    head = torch.cat([prompt["input_ids"][0], prompt["input_ids"].new_tensor(place.ids)])
    video = {}
    if features is not None:
        num_rows = len(candidates)
        video = {
            "mm_encoder_outputs": encoder_outputs(features, num_rows),
            "video_grid_thw": prompt["video_grid_thw"].repeat(num_rows, 1),
            "second_per_grid_ts": prompt["second_per_grid_ts"].repeat(num_rows),
        }
        if config.forget_video and end_of_first_images(prompt["input_ids"].new_tensor([place.ids]), config) > 0:
            head, video = head[~network.model.is_vision(head)], {}  # the video is forgotten by then
    continuations = [place.tokenize(candidate) for candidate in candidates]
    scores = _mean_log_likelihoods(network, head, continuations, latents, latents_see_video, video)
    if place.is_letter is None:
        by_letter, by_text = scores[: len(options)], scores[len(options) :]
        scores = by_letter if by_letter.max() > by_text.max() else by_text
    return scores.softmax(0).tolist()


class _AnswerPlace:
    """Where a reply gives its answer: `ids` are the tokens before, `is_letter` says whether a letter is written there
    (None if the reply has no `<answer>`)."""

    def __init__(self, processor: FourDThinkerProcessor, config, ids: list[int]):
        self.tokenizer, self.lead, self.rest = processor.tokenizer, "", ""
        text = self._decode(ids)
        place = text.rfind(ANSWER_START, 0, text.rfind(ANSWER_END) if ANSWER_END in text else None)
        if place < 0:
            self.is_letter, self.ids = None, _without_unfinished_image(ids, config)
            while self.ids and self.ids[-1] in self.tokenizer.all_special_ids and self.ids[-1] != config.latent_end_id:
                self.ids = self.ids[:-1]  # the end of the text
            is_open = "<think>" in text and "</think>" not in text
            self.ids = self.ids + self.tokenize("</think>" * is_open + ANSWER_START)
            return
        place += len(ANSWER_START)
        written = text[place:].partition(ANSWER_END)[0]
        self.lead = written[: len(written) - len(written.lstrip())]
        letter = LETTER.match(written.strip())
        self.is_letter = letter is not None
        self.lead += letter[0] if letter else ""
        self.ids, self.rest = self._ids_before(ids, text, place)

    def tokenize(self, candidate: str) -> list[int]:
        """The tokens of what is missing between `ids` and the answer, and of a candidate for it."""
        text = self.rest + self.lead + candidate
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _ids_before(self, ids: list[int], text: str, end: int) -> tuple[list[int], str]:
        """The most ids of the reply whose text lies within `text[:end]`, and the rest of that text: a token may lie on
        both sides of `end`."""
        for count in range(len(ids), -1, -1):
            head = self._decode(ids[:count])
            if len(head) <= end and text.startswith(head):
                return ids[:count], text[len(head) : end]
        raise AssertionError("the empty prefix fits any text")

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _without_unfinished_image(ids: list[int], config) -> list[int]:
    if ids and ids[-1] in (config.latent_start_id, config.latent_token_id):
        return ids[: len(ids) - ids[::-1].index(config.latent_start_id) - 1]
    return ids


@torch.no_grad()
def _mean_log_likelihoods(
    network, head: torch.LongTensor, continuations: list[list[int]], latents, latents_see_video: bool, video: dict
) -> torch.Tensor:
    """The mean log-probability per token of each continuation of `head` `(length,)`: `(continuations,)` float32."""
    config = network.config
    rows = [torch.cat([head, head.new_tensor(tokens)]) for tokens in continuations]
    pad = network.generation_config.pad_token_id
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows], device=head.device)
    mask = (torch.arange(input_ids.shape[1], device=head.device) < lengths[:, None]).long()
    is_pad = input_ids == config.latent_token_id
    latent_embeds = torch.zeros(*input_ids.shape, config.text_config.hidden_size, device=head.device)
    if is_pad.any():
        latent_embeds[is_pad] = latents[: int(is_pad[0].sum())].to(latent_embeds).repeat(len(rows), 1)
    position_ids = None
    attention_mask = mask
    if video and not latents_see_video:
        grid = {name: video[name] for name in ("video_grid_thw", "second_per_grid_ts")}
        position_ids, _ = network.model.get_rope_index(input_ids, attention_mask=mask, **grid)
        attention_mask = _blind_mask(network, input_ids, is_pad)
    logits = network(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        latent_embeds=latent_embeds,
        **video,
        logits_to_keep=input_ids.shape[1] - len(head) + 1,
    ).logits
    log_probs = logits[:, :-1].float().log_softmax(-1)
    chosen = log_probs.gather(-1, input_ids[:, len(head) :, None])[..., 0]
    is_continuation = mask[:, len(head) :]
    return (chosen * is_continuation).sum(1) / is_continuation.sum(1)


def _blind_mask(network, input_ids: torch.LongTensor, is_pad: torch.BoolTensor) -> torch.Tensor:
    """A causal mask `(rows, 1, seq, seq)`, added to the scores, in which latents do not attend to the video. Padding
    needs no mask: it stands on the right, and what it computes is not read."""
    seq, is_vision = input_ids.shape[1], network.model.get_mm_token_type_ids(input_ids) > 0
    sees = torch.ones(seq, seq, dtype=torch.bool, device=input_ids.device).tril()
    sees = sees & ~(is_pad[:, :, None] & is_vision[:, None, :])
    mask = torch.zeros(sees.shape, dtype=network.dtype, device=input_ids.device)
    return mask.masked_fill(~sees, torch.finfo(network.dtype).min)[:, None]
