"""Every mode of `generate` gives the tokens, logits and latents of one loop without a cache (`reference_loop.py`)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reference_loop import STEPS, TOLERANCE, Force, assert_exact, blocks, follow, generate, prompts, reference, single
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from fourdthinker_hf import FourDThinkerForConditionalGeneration, latent_hooks
from fourdthinker_hf.checkpoints import BUNDLED, load_model
from fourdthinker_hf.generation_fourdthinker import CACHE_NAME, DrawLogitsProcessor


def test_greedy_in_a_batch_whose_rows_open_blocks_at_other_steps(model, processor):
    inputs, schedule = prompts(processor, [4, 9, 6]), blocks(model, (0, 1), (0, 9), (1, 3))
    output = generate(model, inputs, schedule)
    assert (output.sequences == model.config.latent_token_id).sum(1).tolist() == [8, 4, 0]
    assert output.latents.shape == (3, STEPS, 192) and output.latents.dtype == torch.float32
    assert_exact(model, inputs, output, schedule)


def test_none_to_eight_blocks(model, processor):
    inputs = prompts(processor, [2] * 9)
    schedule = blocks(model, *((row, 6 * i) for row in range(9) for i in range(row)))
    output = generate(model, inputs, schedule, 49)
    assert (output.sequences == model.config.latent_token_id).sum(1).tolist() == [4 * row for row in range(9)]
    assert_exact(model, inputs, output, schedule)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_prompts_without_a_video(model, processor, kind):
    inputs, schedule = prompts(processor, [1, 1], kind), blocks(model, (0, 2), (1, 5))
    assert_exact(model, inputs, generate(model, inputs, schedule), schedule)


def test_rows_with_videos_with_pictures_and_with_text_alone_give_what_each_gives_alone():
    """Greedy replies of the bundled checkpoint, which pictures things in three of the rows."""
    model, processor = load_model(BUNDLED, "cpu", "float32")
    examples = Path(__file__).parents[1] / "examples"
    video = lambda name: {"type": "video", "video": str(examples / f"sim_{name}.mp4")}  # noqa: E731
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    red, blue = ({"type": "image", "image": Image.new("RGB", (84, 112), color)} for color in ("red", "blue"))
    contents = [
        [video("camera"), text("How does the camera move?")],
        [text("Hello")],
        [red, text("What is this?")],
        [video("direction"), text("and"), video("faster"), text("Which is faster?")],
        [blue, video("faster"), red, text("What moves?")],
    ]
    rows = [[{"role": "user", "content": content}] for content in contents]
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    limits = {"do_sample": False, "max_new_tokens": 64, "return_dict_in_generate": True}
    padding = {"padding": True, "padding_side": "left"}
    batch = processor.apply_chat_template(rows, **settings, processor_kwargs=padding)
    together = model.generate(**batch, **limits)
    num_blocks = 0
    for number, row in enumerate(rows):
        inputs = processor.apply_chat_template([row], **settings)
        alone = model.generate(**inputs, **limits)
        new = alone.sequences[0, inputs["input_ids"].shape[1] :]
        begin = batch["input_ids"].shape[1]
        assert together.sequences[number, begin : begin + len(new)].tolist() == new.tolist()
        torch.testing.assert_close(together.latents[number, : len(new)], alone.latents[0], atol=1e-3, rtol=1e-3)
        num_blocks += int((new == model.config.latent_start_id).sum())
    assert num_blocks >= 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(tiny_folder, processor, attention):
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, attn_implementation=attention).eval()
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 2), (1, 5))
    output = generate(model, inputs, schedule)
    assert model.config._attn_implementation == attention
    assert_exact(model, inputs, output, schedule)


def test_bf16_keeps_its_dtype_and_stays_near_fp32(model, tiny_folder, processor):
    half = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.bfloat16).eval()
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 2), (1, 5))
    output = generate(half, inputs, schedule)
    assert output.latents.dtype == torch.bfloat16
    for row, tokens in enumerate(output.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
        logits, _ = follow(model, single(inputs, row), tokens)
        assert (torch.stack(output.logits, 1)[row] - logits).abs().max() < 0.02 * logits.abs().max()


@pytest.mark.parametrize("compiled", [False, True])
def test_static_cache_and_torch_compile(model, processor, compiled):
    """Dynamo compiles the model as one graph. Which backend generates code from that does not matter here."""
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 2), (1, 5))
    kwargs = {"cache_implementation": "static", "disable_compile": True}
    if compiled:
        kwargs = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", fullgraph=True)}
        kwargs["compile_config"]._compile_all_devices = True  # else transformers compiles on accelerators only
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    output = generate(model, inputs, schedule, **kwargs)
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
    assert_exact(model, inputs, output, schedule)


def two_turns(model, processor, **kwargs):
    """The output of a first turn in which both rows have a mental image, the prompt of a second turn with its latents,
    and the schedule of the second turn."""
    inputs = prompts(processor, [4, 9])
    first = generate(model, inputs, blocks(model, (0, 2), (1, 5)), 12, **kwargs)
    turn = torch.tensor([[20, 21, 22]] * 2)
    second = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    second["input_ids"] = torch.cat([first.sequences, turn], 1)
    grown = second["input_ids"].shape[1] - inputs["input_ids"].shape[1]
    second["attention_mask"] = F.pad(inputs["attention_mask"], (0, grown), value=1)
    second["latent_embeds"] = F.pad(first.latents, (0, 0, inputs["input_ids"].shape[1], 3))
    return first, second, blocks(model, (0, 3), (1, 0))


def test_a_second_turn_with_the_latents_of_the_first(model, processor):
    _, inputs, schedule = two_turns(model, processor)
    output = generate(model, inputs, schedule, 10)
    assert_exact(model, inputs, output, schedule)
    zeroed = inputs | {"latent_embeds": torch.zeros_like(inputs["latent_embeds"])}
    assert (generate(model, zeroed, schedule, 10).logits[0] - output.logits[0]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_prefill_in_chunks_with_blocks_in_the_prompt(model, processor, size):
    _, inputs, schedule = two_turns(model, processor)
    assert_exact(model, inputs, generate(model, inputs, schedule, 10, prefill_chunk_size=size), schedule)


@pytest.mark.parametrize("with_latents", [False, True])
def test_a_second_turn_on_the_cache_of_the_first(model, processor, with_latents):
    """Cached tokens need neither pixels nor latents. In between, the model answers about another video."""
    first, inputs, schedule = two_turns(model, processor)
    inputs = {name: value for name, value in inputs.items() if with_latents or name != "latent_embeds"}
    generate(model, prompts(processor, [12, 2]), steps=1)
    cached = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    output = generate(model, cached, schedule, 10, past_key_values=first[CACHE_NAME])
    _, inputs, _ = two_turns(model, processor)
    assert_exact(model, inputs, output, schedule)


def test_target_frames_in_the_prompt_are_its_latents(model, processor):
    """Each row is returned twice, so the latents must be repeated with their row."""
    frame = np.full((84, 84, 3), (220, 20, 20), np.uint8)
    texts = ["<|im_start|>where<|im_end|><output_image>", "<output_image> which <output_image>"]
    imagery = [[frame], [frame[::-1] // 2, frame // 3]]
    inputs = processor(text=texts, imagery=imagery, padding=True, padding_side="left", return_tensors="pt")
    schedule = blocks(model, *((row, 2) for row in range(4)))
    output = generate(model, inputs, schedule, do_sample=True, top_k=1, num_return_sequences=2)
    targets = model(**inputs).latent_targets
    vectors = inputs.data | {"latent_embeds": model.model.place_latents(inputs["input_ids"], targets)}
    twice = {name: vectors[name].repeat_interleave(2, 0) for name in ("input_ids", "attention_mask", "latent_embeds")}
    assert_exact(model, twice, output, schedule)


@pytest.mark.parametrize("own_draws", [False, True])
def test_sampling_draws_what_the_loop_draws(model, processor, own_draws):
    """One row with temperature and top-k: the same draws from the same seed, also inside a block. With
    `output_scores`, transformers' loop draws."""
    inputs, schedule = prompts(processor, [4]), blocks(model, (0, 2))
    prompt = inputs["input_ids"].shape[1]
    force = Force(model, prompt, schedule)
    torch.manual_seed(3)
    output = generate(model, inputs, schedule, do_sample=True, temperature=0.7, top_k=9, output_scores=own_draws)
    torch.manual_seed(3)

    def draw(ids, scores):
        config, scores = model.config, force(ids, scores) / 0.7
        scores = scores.masked_fill(scores < scores.topk(9).values[:, -1:], -torch.inf)
        if ids[0, -1] in (config.latent_start_id, config.latent_token_id):
            choose(torch.ones_like(scores))  # the sampler draws there too, from one possible token
            return scores
        scores[:, [config.latent_token_id, config.latent_end_id]] = -torch.inf
        only = torch.full_like(scores, -torch.inf)
        only[0, choose(scores.softmax(-1))] = 0
        return only

    def choose(probabilities):
        if own_draws:
            return torch.multinomial(probabilities, 1)
        limit = torch.rand(1, dtype=torch.float64) * probabilities.double().sum()
        return int((probabilities.double().cumsum(-1) <= limit).sum())

    new, logits, _ = reference(model, single(inputs, 0), draw, STEPS)
    assert output.sequences[0, prompt:].tolist() == new
    assert (torch.stack(output.logits, 1)[0] - logits).abs().max() < TOLERANCE


def test_draws_follow_the_probabilities():
    """A million draws of one call: each token's frequency is within five standard deviations, and tokens without
    probability, first and last ones too, are never drawn."""
    probabilities = torch.tensor([0, 0.5, 0, 1e-3, 0.25, 0.249, 0])
    scores = probabilities.log().expand(1_000_000, -1)
    torch.manual_seed(0)
    drawn = DrawLogitsProcessor()(None, scores)
    assert (drawn.isfinite().sum(-1) == 1).all()
    frequencies = drawn.argmax(-1).bincount(minlength=7) / len(scores)
    deviations = (probabilities * (1 - probabilities) / len(scores)).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * deviations).all()


def test_num_return_sequences(model, processor):
    """Each row is a sample of its own prompt and has its own latents."""
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, *((row, 2 + row) for row in range(4)))
    torch.manual_seed(3)
    output = generate(model, inputs, schedule, do_sample=True, num_return_sequences=2)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 4
    assert output.latents.shape == (4, STEPS, 192)
    for row, tokens in enumerate(output.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
        logits, vectors = follow(model, single(inputs, row // 2), tokens)
        assert (torch.stack(output.logits, 1)[row] - logits).abs().max() < TOLERANCE
        is_pad = torch.tensor(tokens)[:, None] == model.config.latent_token_id
        assert (output.latents[row] - vectors.masked_fill(~is_pad, 0)).abs().max() < TOLERANCE


class Only(LogitsProcessor):
    """Allows only `tokens`. `bonus` makes a block likely."""

    def __init__(self, model, tokens, bonus=0.0):
        self.tokens, self.start, self.bonus = tokens, model.config.latent_start_id, bonus

    def __call__(self, input_ids, scores):
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self.tokens] = scores[:, self.tokens]
        allowed[:, self.start] += self.bonus
        return allowed


def scored(model, one, tokens, processor, early_end=False):
    """The log-probability of `tokens` by the loop without a cache. As in beam search, forced tokens count 0."""
    config, total = model.config, 0.0
    logits, vectors = follow(model, one, tokens)
    previous, pads = int(one["input_ids"][0, -1]), 0
    for token, row in zip(tokens, logits, strict=True):
        if previous not in (config.latent_start_id, config.latent_token_id):
            pads = 0
            total += float(processor(None, row.log_softmax(-1)[None])[0, token])
        elif early_end and pads < config.latent_size:
            scores = processor(None, row.log_softmax(-1)[None])[0]
            leave = torch.arange(len(scores)) == config.latent_end_id
            total += float(scores[leave if token == config.latent_end_id else ~leave].logsumexp(0))
        pads += token == config.latent_token_id
        previous = token
    return total, vectors


def test_beam_search_finds_the_best_of_all_sequences(tiny_folder, processor):
    """With as many beams as sequences, beam search must rank them as listing them all does."""
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, latent_size=2).eval()
    config, eos, steps = model.config, model.config.text_config.eos_token_id, 5
    inputs, allowed = prompts(processor, [2, 4]), Only(model, [config.latent_start_id, 30, eos])
    output = model.generate(
        **inputs,
        max_new_tokens=steps,
        num_beams=81,
        num_return_sequences=5,
        do_sample=False,
        length_penalty=0.0,
        early_stopping="never",
        logits_processor=[allowed],
        return_dict_in_generate=True,
        output_scores=True,
    )

    def endings(new):
        """Every complete sequence that begins with `new` and follows the rules of a block."""
        if len(new) == steps or new[-1:] == [eos]:
            return [new]
        if new[-2:] == [config.latent_token_id] * 2:
            return endings([*new, config.latent_end_id])
        if new[-1:] in ([config.latent_token_id], [config.latent_start_id]):
            return endings([*new, config.latent_token_id])
        return [end for token in (config.latent_start_id, 30, eos) for end in endings([*new, token])]

    for row in range(2):
        every = [(scored(model, single(inputs, row), new, allowed)[0], new) for new in endings([])]
        for place, (score, new) in enumerate(sorted(every, reverse=True)[:5]):
            found = output.sequences[5 * row + place, inputs["input_ids"].shape[1] :].tolist()
            assert found[: len(new)] == new, (row, place)
            assert output.sequences_scores[5 * row + place] == pytest.approx(score, abs=TOLERANCE)


@pytest.mark.parametrize("kwargs", [{}, {"latent_early_end": True}, {"do_sample": True}], ids=["", "early", "sample"])
def test_beams_carry_their_latents(model, processor, kwargs):
    """With few beams, beams are reordered and dropped; each hypothesis has the latents and score of its own tokens."""
    config = model.config
    inputs = prompts(processor, [4, 9])
    allowed = Only(model, [config.latent_start_id, config.latent_end_id, 30, 31, 32], 1.0)
    torch.manual_seed(0)
    output = generate(
        model,
        inputs,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        output_scores=True,
        logits_processor=[allowed],
        **kwargs,
    )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert (output.beam_indices[:3].diff(dim=1) != 0).any(), "no beam crossed another: the test shows nothing"
    assert (new == config.latent_token_id).any(1).all()
    for row, tokens in enumerate(new.tolist()):
        early = kwargs.get("latent_early_end", False)
        score, vectors = scored(model, single(inputs, row // 3), tokens, allowed, early)
        assert output.sequences_scores[row] == pytest.approx(score, abs=1e-4)
        is_pad = torch.tensor(tokens)[:, None] == config.latent_token_id
        assert (output.latents[row] - vectors.masked_fill(~is_pad, 0)).abs().max() < TOLERANCE


def test_early_end(model, processor):
    """Two rows choose the end of their block early. It ends early only with `latent_early_end`."""
    config, inputs = model.config, prompts(processor, [4, 9])
    schedule = blocks(model, (0, 0), (1, 1)) | {(0, 2): config.latent_end_id, (1, 2): config.latent_end_id}
    pads = []
    for early in (False, True):
        output = generate(model, inputs, schedule, latent_early_end=early)
        assert_exact(model, inputs, output, schedule, early_end=early)
        pads.append((output.sequences == config.latent_token_id).sum(1).tolist())
    assert pads == [[4, 4], [1, 0]]


def test_an_end_of_the_row_inside_a_block_is_a_latent(model, processor):
    eos = model.config.text_config.eos_token_id
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 0)) | {(0, 2): eos, (0, 7): eos, (1, 9): eos}
    for early in (False, True):
        output = generate(model, inputs, schedule, latent_early_end=early)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        assert (new == model.config.latent_token_id).sum(1).tolist() == [4, 0] and new[0, 7] == new[1, 9] == eos
        assert (output.latents[0, 8:] == 0).all()
        logits, vectors = follow(model, single(inputs, 0), new[0, :8].tolist())
        assert (torch.stack(output.logits, 1)[0, :8] - logits).abs().max() < TOLERANCE
        assert (output.latents[0, 1:5] - vectors[1:5]).abs().max() < TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_latents_that_do_not_see_the_video(model, processor, cache):
    """Compared with the loop under a full attention mask. Text still attends to the video."""
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 2), (1, 5))
    kwargs = {"cache_implementation": cache, "disable_compile": True}
    blind = generate(model, inputs, schedule, latents_see_video=False, **kwargs)
    assert_exact(model, inputs, blind, schedule, see_video=False)
    seeing = generate(model, inputs, schedule)
    assert (blind.latents[0, 3] - seeing.latents[0, 3]).abs().max() < TOLERANCE  # of the start, a word
    assert (blind.latents[0, 4] - seeing.latents[0, 4]).abs().max() > 100 * TOLERANCE


class SinceQuestion(Force):
    """[`Force`] with steps counted from the end of the question, which works in both passes of `forget_video`."""

    def __init__(self, model, processor, schedule):
        super().__init__(model, 0, schedule)
        self.end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.banned = [*self.banned, self.end]

    def __call__(self, input_ids, scores):
        self.prompt_length = int((input_ids[0] == self.end).nonzero()[-1]) + 1
        return super().__call__(input_ids, scores)


def forgetting(model, one, choose, steps, hook=None):
    """The loop on one row: with the video up to the first token of text after the first images, from there without."""
    config = model.config
    tokens, _, vectors = reference(model, one, choose, steps, hook=hook)
    pairs = list(zip(tokens, tokens[1:], strict=False))
    cut = next(
        (i + 1 for i, (a, b) in enumerate(pairs) if a == config.latent_end_id and b != config.latent_start_id), None
    )
    if cut is None:
        return tokens, vectors
    vision = (config.vision_start_token_id, config.video_token_id, config.vision_end_token_id)
    kept = [token for token in one["input_ids"][0].tolist() if token not in vision] + tokens[:cut]
    latents = torch.cat([torch.zeros(len(kept) - cut, vectors.shape[1]), vectors[:cut]])
    blind = {"input_ids": torch.tensor([kept]), "latent_embeds": latents[None]}
    more, _, others = reference(model, blind, choose, steps - cut, hook=hook)
    return tokens[:cut] + more, torch.cat([vectors[:cut], others])


@pytest.mark.parametrize("hook", [None, latent_hooks.zeros])
def test_a_forgotten_video(model, processor, hook):
    """Rows with two images and a later one, with one, with none, with one cut at the limit, with one ending there."""
    inputs = prompts(processor, [4, 9, 6, 4, 2], questions=[0, 1, 2, 1, 0])
    schedule = blocks(model, (0, 1), (0, 7), (0, 17), (1, 3), (3, 20), (4, 18))
    force = SinceQuestion(model, processor, schedule)
    output = model.generate(
        **inputs,
        max_new_tokens=24,
        do_sample=False,
        return_dict_in_generate=True,
        logits_processor=[force],
        forget_video=True,
        latent_hook=hook,
    )
    pad, prompt, same = model.config.latent_token_id, inputs["input_ids"].shape[1], []
    for row, tokens in enumerate(output.sequences[:, prompt:].tolist()):
        mine = {(0, at): token for (r, at), token in schedule.items() if r == row}
        choose = SinceQuestion(model, processor, mine)
        one_hook = hook and (lambda latent, block, slot: torch.zeros_like(latent))
        new, vectors = forgetting(model, single(inputs, row), choose, 24, one_hook)
        assert tokens == new, row
        expected = vectors.masked_fill(torch.tensor(tokens)[:, None] != pad, 0)
        assert (output.latents[row] - expected).abs().max() < TOLERANCE
        same.append(new == reference(model, single(inputs, row), choose, 24, hook=one_hook)[0])
    assert same == [False, False, True, True, True], "whether the video is forgotten should show in the words"
    assert (output.sequences == pad).sum(1).tolist() == [12, 4, 0, 3, 4]


def test_forgetting_shortens_rows_that_end_and_streams_one_text(model, processor):
    inputs = prompts(processor, [4, 9])
    eos = model.config.text_config.eos_token_id
    schedule = blocks(model, (0, 1)) | {(0, 12): eos, (1, 3): eos}
    settings = {"max_new_tokens": 24, "do_sample": False, "forget_video": True}
    force = [SinceQuestion(model, processor, schedule)]
    both = model.generate(**inputs, **settings, logits_processor=force)
    new = both[:, inputs["input_ids"].shape[1] :]
    assert new.shape == (2, 13) and (new == eos).sum(1).tolist() == [1, 1] and new[0, 12] == new[1, 3] == eos
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=10)
    one = single(inputs, 0)
    alone = model.generate(**one, **settings, logits_processor=force, streamer=streamer)
    assert torch.equal(alone[0, one["input_ids"].shape[1] :], new[0])
    assert "".join(streamer) == processor.tokenizer.decode(new[0])


def test_samples_that_forget_keep_their_own_prompt(model, processor):
    inputs = prompts(processor, [4, 9])
    schedule = blocks(model, (0, 1), (1, 2), (2, 3))
    torch.manual_seed(3)
    output = model.generate(
        **inputs,
        max_new_tokens=16,
        do_sample=True,
        num_return_sequences=2,
        return_dict_in_generate=True,
        logits_processor=[SinceQuestion(model, processor, schedule)],
        forget_video=True,
    )
    prompt, pad = inputs["input_ids"].shape[1], model.config.latent_token_id
    assert torch.equal(output.sequences[:, :prompt], inputs["input_ids"].repeat_interleave(2, 0))
    assert (output.sequences == pad).sum(1).tolist() == [4, 4, 4, 0]
    for row in range(3):  # what was pictured is of the row's own video
        at = (output.sequences[row] == pad).nonzero()[-1, 0] + 1 - prompt
        tokens = output.sequences[row, prompt : prompt + at].tolist()
        _, vectors = follow(model, single(inputs, row // 2), tokens)
        assert (output.latents[row, at - 4 : at] - vectors[-4:]).abs().max() < TOLERANCE


def test_without_a_video_there_is_nothing_to_forget(model, processor):
    inputs, schedule = prompts(processor, [1, 1], "text"), blocks(model, (0, 2), (1, 5))
    force = [SinceQuestion(model, processor, schedule)]
    plain, forgot = (
        model.generate(**inputs, max_new_tokens=16, do_sample=False, logits_processor=force, forget_video=forget)
        for forget in (False, True)
    )
    assert torch.equal(plain, forgot)


class AtFirstLatent(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


def test_a_block_cut_by_the_limit_or_by_a_criterion(model, processor):
    """The last pad has a latent although it was not fed, so a prompt that ends there continues the block exactly."""
    inputs, schedule = prompts(processor, [4]), blocks(model, (0, 0))
    whole = generate(model, inputs, schedule, 8)
    stop = StoppingCriteriaList([AtFirstLatent(model.config.latent_token_id)])
    for cut in (generate(model, inputs, schedule, 2), generate(model, inputs, schedule, 8, stopping_criteria=stop)):
        assert cut.sequences.shape[1] == inputs["input_ids"].shape[1] + 2
        assert (cut.latents - whole.latents[:, :2]).abs().max() < TOLERANCE and cut.latents[0, 1].norm() > 0
        rest = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
        rest["input_ids"], rest["attention_mask"] = cut.sequences, torch.ones_like(cut.sequences)
        rest["latent_embeds"] = F.pad(cut.latents, (0, 0, inputs["input_ids"].shape[1], 0))
        output = generate(model, rest, {}, 6)
        assert torch.equal(output.sequences, whole.sequences)
        assert_exact(model, rest, output, {})


def test_streamer(model, processor):
    inputs, schedule = prompts(processor, [4]), blocks(model, (0, 2))
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=10)
    output = generate(model, inputs, schedule, streamer=streamer)
    assert "".join(streamer) == processor.tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :])
    assert_exact(model, inputs, output, schedule)


def test_logits_to_keep(model, processor):
    inputs, _ = two_turns(model, processor)[1:]
    mask = torch.rand(inputs["input_ids"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        whole = model(**inputs).logits
        for keep, expected in ((3, whole[:, -3:]), (torch.tensor([2, 5]), whole[:, [2, 5]]), (mask, whole[mask])):
            kept = model(**inputs, logits_to_keep=keep).logits
            torch.testing.assert_close(kept, expected, atol=TOLERANCE, rtol=0)


def test_device_map_auto_with_layers_on_disk(model, tiny_folder, processor, tmp_path):
    """accelerate's hooks load part of the network from disk at each step."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    spread = FourDThinkerForConditionalGeneration.from_pretrained(
        tiny_folder, device_map="auto", max_memory={"cpu": size * 2 // 3}, offload_folder=tmp_path
    ).eval()
    assert {"cpu", "disk"} <= set(spread.hf_device_map.values())
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, (0, 2), (1, 5))
    assert_exact(model, inputs, generate(spread, inputs, schedule), schedule)


BARE = """
import sys, torch
from transformers import AutoModel
folder, inputs = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
output = model.generate(**torch.load(inputs), max_new_tokens=12, do_sample=False, return_dict_in_generate=True,
                        output_logits=True)
torch.save({"sequences": output.sequences, "latents": output.latents, "logits": output.logits}, inputs)
"""


def test_a_merged_adapter_saved_and_loaded_bare(tiny_folder, processor, tmp_path):
    """LoRA with trained rows for the new tokens is merged, saved, and loaded in a process without our package."""
    from peft import LoraConfig, get_peft_model

    base = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    config = base.config
    new_rows = {"embed_tokens": [config.latent_token_id, config.latent_start_id, config.latent_end_id]}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], trainable_token_indices=new_rows)
    adapted = get_peft_model(base, lora)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3 if "lora" in name else 0.1)
    inputs = prompts(processor, [4, 9])
    inputs["input_ids"][:, -1] = config.latent_start_id  # the prompt opens a block: the loop below needs no schedule
    with torch.no_grad():
        before = adapted(**inputs, use_cache=False).logits
    model = adapted.merge_and_unload().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, before, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "merged")
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    (tmp_path / "bare.py").write_text(BARE)
    (tmp_path / "fourdthinker_hf.py").write_text("raise ImportError('not installed here')\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "bare.py", "merged", "inputs.pt"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    bare = torch.load(tmp_path / "inputs.pt")
    assert (bare["sequences"] == config.latent_token_id).sum(1).tolist() == [4, 4]
    for row, tokens in enumerate(bare["sequences"][:, inputs["input_ids"].shape[1] :].tolist()):
        new, logits, vectors = reference(model, single(inputs, row), lambda ids, scores: scores, 12)
        assert tokens == new
        assert (torch.stack(bare["logits"], 1)[row] - logits).abs().max() < TOLERANCE
        assert (bare["latents"][row, :4] - vectors[:4]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"forget_video": True, "num_beams": 2}, "cannot be combined with num_beams"),
        ({"forget_video": True, "output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ({"forget_video": True, "past_key_values": "filled"}, "combined with past_key_values"),
        ({"use_cache": False}, "use_cache=False"),
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
        ({"cache_implementation": "paged"}, "Continuous batching"),
        ({"generation_config": GenerationConfig(cache_implementation="paged")}, "paged"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"token_healing": True}, "token_healing"),
        ({"custom_generate": print}, "custom_generate"),  # any function
        ({"custom_generate": "somebody/elses-loop"}, "custom_generate"),
        ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, "contrastive_search"),
        ({"dola_layers": "low", "trust_remote_code": True}, "dola_generation"),
        ({"attention_mask": "right"}, "padded on the right"),
        ({"input_ids": "pads"}, "2 <.latent_pad.> tokens but no latents"),
        ({"latent_embeds": "short"}, "as long as the prompt"),
        ({"latent_embeds": "whole", "pixel_values_latent": torch.zeros(36, 1176)}, "not both"),
        ({"pixel_values_latent": torch.zeros(36, 1176), "image_grid_thw_latent": torch.tensor([[1, 6, 6]])}, "hold 0"),
        ({"pixel_values_videos": None}, "pixel_values_videos and video_grid_thw"),
        ({"video_grid_thw": None}, "pixel_values_videos and video_grid_thw"),
        ({CACHE_NAME: "longer"}, "whole prompt"),
    ],
    ids=str,
)
def test_what_cannot_be_exact_is_refused_before_anything_is_computed(model, processor, kwargs, message):
    inputs = dict(prompts(processor, [4, 6]))
    length, hidden = inputs["input_ids"].shape[1], model.config.text_config.hidden_size
    cache = DynamicCache(config=model.config)
    cache.update(torch.zeros(2, 2, length, 32), torch.zeros(2, 2, length, 32), 0)
    filled = DynamicCache(config=model.config)
    filled.update(torch.zeros(2, 2, length - 1, 32), torch.zeros(2, 2, length - 1, 32), 0)
    pads = inputs["input_ids"].clone()
    pads[0, -3:-1] = model.config.latent_token_id
    made = {
        "right": inputs["attention_mask"].flip(1),
        "pads": pads,
        "short": torch.zeros(2, length - 1, hidden),
        "whole": torch.zeros(2, length, hidden),
        "longer": cache,
        "filled": filled,
    }
    kwargs = {name: made.get(value, value) if isinstance(value, str) else value for name, value in kwargs.items()}
    computed = []
    handles = [module.register_forward_pre_hook(lambda *_: computed.append(1)) for module in model.modules()]
    try:
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs | kwargs, max_new_tokens=4)
    finally:
        for handle in handles:
            handle.remove()
    assert not computed


def test_embeddings_alone_and_continuous_batching_are_refused(model):
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 4, 192), max_new_tokens=2)
    with pytest.raises(ValueError, match="Continuous batching"):
        model.generate_batch([[1, 2]])


def test_right_padding_is_refused_where_the_mask_is_inferred(model):
    pad = model.generation_config.pad_token_id
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(torch.tensor([[30, 31, pad], [30, 31, 32]]), max_new_tokens=2)


def test_top_k_of_one_finds_a_word_where_a_latent_would_come_first(model, processor):
    """Outside a block, pad and end are removed before top-k, or else no token would be left."""
    config, inputs = model.config, prompts(processor, [4])
    likely = SequenceBiasLogitsProcessor([[[config.latent_end_id], 99.0], [[config.latent_token_id], 98.0]])
    output = generate(model, inputs, do_sample=True, top_k=1, top_p=0.1, logits_processor=[likely])
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert not torch.isin(new, torch.tensor([config.latent_end_id, config.latent_token_id])).any()


layouts = st.lists(
    st.tuples(st.sampled_from([2, 3, 5, 8]), st.sets(st.integers(0, 11), max_size=2)), min_size=2, max_size=4
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.randoms(use_true_random=False))
def test_a_permuted_batch_gives_permuted_results(model, processor, rows, random):
    """So padding changes nothing, because the rows of another batch are padded to another length."""
    order = random.sample(range(len(rows)), len(rows))
    alone = order[:1]
    outputs = {}
    for name, places in (("whole", range(len(rows))), ("permuted", order), ("alone", alone)):
        inputs = prompts(processor, [rows[i][0] for i in places], questions=[i % 3 for i in places])
        schedule = blocks(model, *((at, step) for at, i in enumerate(places) for step in rows[i][1]))
        output = generate(model, inputs, schedule)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        logits = torch.stack(output.logits, 1)
        outputs[name] = {i: (new[at], logits[at], output.latents[at]) for at, i in enumerate(places)}
    for other, places in (("permuted", order), ("alone", alone)):
        for i in places:
            (tokens, *values), (tokens_too, *values_too) = outputs["whole"][i], outputs[other][i]
            assert torch.equal(tokens, tokens_too)
            for a, b in zip(values, values_too, strict=True):
                assert (a - b).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def replays(figure):
    found = []
    yield found
    figure(
        f"replayed log-probabilities differ by at most {max(right for right, _ in found):.1e}; "
        f"with latents zeroed, in every batch by at least {min(wrong for _, wrong in found):.1e}"
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.integers(0, 2**16))
def test_one_forward_with_the_recorded_latents_replays_the_sampling(model, processor, replays, rows, seed):
    """Log-probabilities of the tokens after a block equal those of sampling to 1e-5; with zeroed latents they differ
    by more than 1e-2."""
    config, inputs = model.config, prompts(processor, [length for length, _ in rows])
    schedule = blocks(model, (0, 0), *((row, step) for row, (_, steps) in enumerate(rows) for step in steps))
    torch.manual_seed(seed)
    output = generate(model, inputs, schedule, do_sample=True, temperature=1.3, top_k=20)
    prompt = inputs["input_ids"].shape[1]
    new = output.sequences[:, prompt:]
    whole = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"} | {
        "input_ids": output.sequences,
        "attention_mask": F.pad(inputs["attention_mask"], (0, STEPS), value=1),
    }
    latents = F.pad(output.latents, (0, 0, prompt, 0))
    sampled = torch.stack(output.logits, 1).log_softmax(-1).gather(-1, new[..., None])
    differences = []
    for given_latents in (latents, torch.zeros_like(latents)):
        with torch.no_grad():
            logits = model(**whole, latent_embeds=given_latents).logits[:, prompt - 1 : -1]
        difference = (logits.log_softmax(-1).gather(-1, new[..., None]) - sampled)[..., 0].abs()
        after = (new == config.latent_token_id).cumsum(1) > 0
        differences.append(float(difference[after & (new != config.latent_token_id)].max()))
    replays.append(differences)
    assert differences[0] < 1e-5 and differences[1] > 1e-2
