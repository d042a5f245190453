"""The model on random weights: positions, sources of latents, the block rule, decoding against plain recomputation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, TextIteratorStreamer

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.modeling_fourdthinker import LatentBlockLogitsProcessor, compress_features

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model(tiny_folder):
    return FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module")
def processor(tiny_folder):
    return FourDThinkerProcessor.from_pretrained(tiny_folder)


def make_prompts(processor, lengths, **kwargs):
    """A left-padded batch of one question about videos of `lengths` frames."""
    generator = torch.Generator().manual_seed(1)
    videos = [torch.randint(0, 255, (n, 56, 84, 3), generator=generator, dtype=torch.uint8).numpy() for n in lengths]
    questions = ["where", "which way does it move"] * len(lengths)
    texts = [
        processor.apply_chat_template(processor.conversation(v, q), tokenize=False, add_generation_prompt=True)
        for v, q in zip(videos, questions, strict=False)
    ]
    times = [[0.5 * i for i in range(n)] for n in lengths]
    return processor(
        text=texts, videos=videos, video_timestamps=times, padding=True, return_tensors="pt", **kwargs
    )  # fmt: skip


class Force(LogitsProcessor):
    """Choose given tokens at (row, step); forbid eos and vision tokens, so that rows run on."""

    def __init__(self, config, prompt_length, schedule):
        self.config, self.prompt_length, self.schedule = config, prompt_length, schedule

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        c = self.config
        banned = [c.text_config.eos_token_id, c.image_token_id, c.video_token_id, c.latent_start_id]
        scores[:, banned] = -torch.inf
        step = input_ids.shape[1] - self.prompt_length
        for (row, at), token in self.schedule.items():
            if at == step and row < len(scores):
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores


def decode(model, inputs, schedule, steps=16, **kwargs):
    force = Force(model.config, inputs["input_ids"].shape[1], schedule)
    kwargs = {"do_sample": False, "logits_processor": [force], **kwargs}
    return model.generate(**inputs, max_new_tokens=steps, return_dict_in_generate=True, output_logits=True, **kwargs)


def test_positions_of_text_after_a_video_start_past_its_largest_position():
    # 3 grids of 1 x 2 features, 2 s apart at 2 positions a second: t = 0, 4, 8; the text after starts at 2 + 8 + 1.
    config = FourDThinkerConfig()
    v = config.video_token_id
    ids = torch.tensor([[5, 6, v, v, v, v, v, v, 7, 8]])
    tiny = FourDThinkerForConditionalGeneration(small(config))
    positions, deltas = tiny.model.get_rope_index(
        input_ids=ids, video_grid_thw=torch.tensor([[3, 2, 4]]), second_per_grid_ts=torch.tensor([2.0])
    )
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 6, 6, 10, 10, 11, 12],
        [0, 1, 2, 2, 2, 2, 2, 2, 11, 12],
        [0, 1, 2, 3, 2, 3, 2, 3, 11, 12],
    ]
    assert deltas.tolist() == [[3]]


def small(config):
    config.text_config.update({
        "vocab_size": 151700, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "layer_types": ["full_attention"],
    })  # fmt: skip
    config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config.vision_config.update({"depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16,
                                 "out_hidden_size": 16, "tokens_per_second": 2})  # fmt: skip
    return config


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_no_position(model, processor, side):
    single = make_prompts(processor, [4])
    batch = make_prompts(processor, [4, 9], padding_side=side)
    keep = batch["attention_mask"][0].bool()
    assert torch.equal(batch["input_ids"][0, keep], single["input_ids"][0])
    names = ("input_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    padded, _ = model.model.get_rope_index(**{name: batch[name] for name in names})
    alone, _ = model.model.get_rope_index(**{name: single[name] for name in names})
    assert torch.equal(padded[:, 0, keep], alone[:, 0])
    assert (padded[:, 0, ~keep] == 1).all()


def test_average_drops_the_remainder_and_groups_in_raster_order():
    features = torch.arange(10.0)[:, None]
    assert compress_features(features, (1, 2, 5), 4, "average").flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_grid_keeps_left_and_right_apart():
    features = torch.tensor([0.0, 0, 1, 1] * 2 + [2.0, 2, 3, 3] * 2)[:, None]
    assert compress_features(features, (1, 4, 4), 4, "grid").flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", ["average", "grid"])
def test_fewer_features_than_latents_is_an_error_with_both_numbers(strategy):
    with pytest.raises(ValueError, match=r"2 features.*latent_size=4"):
        compress_features(torch.zeros(2, 8), (1, 1, 2), 4, strategy)


def test_a_pad_needs_exactly_one_source(model, processor):
    inputs = make_prompts(processor, [4])
    pad = model.config.latent_token_id
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[pad, pad]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match="2 <|latent_pad|> tokens but no latents"):
        model(**inputs)
    latents = torch.zeros(*inputs["input_ids"].shape, 192)
    with pytest.raises(ValueError, match="not both"):
        model(**inputs, latent_embeds=latents, pixel_values_latent=torch.zeros(4, 1176))
    frame = {"pixel_values_latent": torch.zeros(36, 1176), "image_grid_thw_latent": torch.tensor([[1, 6, 6]])}
    with pytest.raises(ValueError, match="4 latents but input_ids hold 2"):
        model(**inputs, **frame)
    with pytest.raises(ValueError, match="shape"):
        model(**inputs, latent_embeds=latents[:, 1:])
    with torch.no_grad():
        assert model(**inputs, latent_embeds=latents + 1).logits.isfinite().all()


def test_forward_derives_token_types_and_returns_the_last_hidden_state(model, processor):
    inputs = make_prompts(processor, [4, 6])
    with torch.no_grad():
        given = model(**inputs)
        inputs.pop("mm_token_type_ids")
        derived = model(**inputs)
    assert torch.equal(given.logits, derived.logits)
    torch.testing.assert_close(model.lm_head(derived.last_hidden_state), derived.logits)


def block_rule(early_end=False, do_sample=False):
    config = FourDThinkerConfig(latent_size=2, latent_token_id=0, latent_start_id=1, latent_end_id=2)
    return LatentBlockLogitsProcessor(config, early_end, do_sample)


INF = float("inf")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([3, 4], [-INF, 1.0, -INF, 3.0, 4.0]),  # outside: neither pad nor end
        ([3, 1], [0.0, -INF, -INF, -INF, -INF]),  # opened: pad
        ([1, 0], [0.0, -INF, -INF, -INF, -INF]),  # one of two pads: pad
        ([0, 0], [-INF, -INF, 0.0, -INF, -INF]),  # full: end
    ],
)
def test_block_rule(row, expected):
    scores = torch.tensor([[0.5, 1.0, 2.0, 3.0, 4.0]])
    assert block_rule()(torch.tensor([[4, 1, *row]]), scores)[0].tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=5, max_size=5, unique=True))
def test_early_end_keeps_the_probability_of_the_end(values):
    scores = torch.tensor([values], dtype=torch.float32)
    ruled = block_rule(early_end=True, do_sample=True)(torch.tensor([[4, 1]]), scores)
    torch.testing.assert_close(ruled.softmax(-1)[0, 2], scores.softmax(-1)[0, 2])
    assert ruled.softmax(-1)[0, [1, 3, 4]].sum() == 0
    greedy = block_rule(early_end=True)(torch.tensor([[4, 1]]), scores)
    assert greedy.argmax() == (2 if scores.argmax() == 2 else 0)


def test_batched_decoding_equals_each_row_recomputed_without_a_cache(model, processor):
    """Blocks opened at other steps in each row, and one row without any; against the naive loop on one row."""
    c, steps = model.config, 16
    inputs = make_prompts(processor, [4, 9, 6])
    schedule = {(0, 1): c.latent_start_id, (0, 9): c.latent_start_id, (1, 3): c.latent_start_id}
    output = decode(model, inputs, schedule, steps)
    length = inputs["input_ids"].shape[1]
    new = output.sequences[:, length:]
    assert ((new == c.latent_token_id).sum(1)).tolist() == [8, 4, 0]
    assert output.latents.shape == (3, steps, 192)
    assert (output.latents[new != c.latent_token_id] == 0).all()
    rule = block_rule()
    rule.start, rule.pad, rule.end, rule.latent_size = c.latent_start_id, c.latent_token_id, c.latent_end_id, 4
    for row in range(3):
        keep = inputs["attention_mask"][row].bool()
        grids = inputs["video_grid_thw"].prod(1)
        patches = slice(int(grids[:row].sum()), int(grids[: row + 1].sum()))
        ids = inputs["input_ids"][row, keep][None]
        latents = torch.zeros(1, ids.shape[1], 192)
        forced = {(0, at): token for (r, at), token in schedule.items() if r == row}
        force = Force(c, ids.shape[1], forced)
        for step in range(steps):
            with torch.no_grad():
                now = model(
                    input_ids=ids, latent_embeds=latents, pixel_values_videos=inputs["pixel_values_videos"][patches],
                    video_grid_thw=inputs["video_grid_thw"][row : row + 1],
                    second_per_grid_ts=inputs["second_per_grid_ts"][row : row + 1], use_cache=False,
                )  # fmt: skip
            logits, state = now.logits[:, -1], now.last_hidden_state[:, -1]
            assert (logits[0] - output.logits[step][row]).abs().max() < TOLERANCE, (row, step)
            token = rule(ids, force(ids, logits)).argmax()
            assert token == new[row, step]
            fed = model.model.scale_latents(state)
            if token == c.latent_token_id:
                assert (fed[0] - output.latents[row, step]).abs().max() < TOLERANCE
            ids = torch.cat([ids, token.view(1, 1)], 1)
            latents = torch.cat([latents, fed[:, None]], 1)


def test_one_forward_with_the_recorded_latents_replays_the_decoding(model, processor):
    inputs = make_prompts(processor, [4, 9])
    output = decode(model, inputs, {(0, 1): model.config.latent_start_id, (1, 4): model.config.latent_start_id})
    prompt = inputs["input_ids"].shape[1]
    latents = torch.nn.functional.pad(output.latents, (0, 0, prompt, 0))
    full = {
        "input_ids": output.sequences,
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 16), value=1),
        **{k: inputs[k] for k in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")},
    }
    with torch.no_grad():
        replayed = model(**full, latent_embeds=latents).logits[:, prompt - 1 : -1]
        without = model(**full, latent_embeds=torch.zeros_like(latents)).logits[:, prompt - 1 : -1]
    sampled = torch.stack(output.logits, 1)
    assert (replayed - sampled).abs().max() < TOLERANCE
    assert (without - sampled).abs().max() > 100 * TOLERANCE


def test_a_block_cut_by_the_limit_still_reports_its_last_latent(model, processor):
    inputs = make_prompts(processor, [4])
    schedule = {(0, 0): model.config.latent_start_id}
    cut, whole = (decode(model, inputs, schedule, steps).latents for steps in (3, 8))
    assert (cut[0, 1:].norm(dim=-1) > 0).all()
    torch.testing.assert_close(cut, whole[:, :3])


def test_a_prompt_that_ends_inside_a_block_continues_it(model, processor):
    c = model.config
    inputs = make_prompts(processor, [4])
    whole = decode(model, inputs, {(0, 0): c.latent_start_id}, 8)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[c.latent_start_id, c.latent_token_id]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids")
    latents = torch.zeros(*inputs["input_ids"].shape, 192)
    latents[0, -1] = whole.latents[0, 1]
    rest = decode(model, inputs, {}, 6, latent_embeds=latents)
    assert rest.sequences[0, -6:].tolist() == whole.sequences[0, -6:].tolist()
    torch.testing.assert_close(rest.latents, whole.latents[:, 2:], atol=TOLERANCE, rtol=0)


def test_early_end_by_argument(model, processor):
    c = model.config
    inputs = make_prompts(processor, [4])
    schedule = {(0, 0): c.latent_start_id, (0, 2): c.latent_end_id}
    late = decode(model, inputs, schedule, 8).sequences[0, -8:]
    early = decode(model, inputs, schedule, 8, latent_early_end=True).sequences[0, -8:]
    assert (late == c.latent_token_id).sum() == 4
    assert early.tolist()[:3] == [c.latent_start_id, c.latent_token_id, c.latent_end_id]


def test_the_hook_sees_each_latent_once_and_decides_what_is_fed(model, processor):
    c = model.config
    inputs = make_prompts(processor, [4, 9])
    schedule = {(0, 0): c.latent_start_id, (0, 8): c.latent_start_id, (1, 2): c.latent_start_id}
    seen = []

    def hook(latents, rows, block, slot):
        seen.extend(zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True))
        return torch.ones_like(latents)

    output = decode(model, inputs, schedule, latent_hook=hook)
    expected = [(0, 0, s) for s in range(4)] + [(0, 1, s) for s in range(4)] + [(1, 0, s) for s in range(4)]
    assert sorted(seen) == expected
    is_pad = output.sequences[:, -16:] == c.latent_token_id
    assert torch.equal(output.latents, is_pad[..., None].expand_as(output.latents).float())
    assert not torch.equal(decode(model, inputs, schedule).logits[9], output.logits[9])


def test_sampling_is_seeded_and_expands_rows(model, processor):
    inputs = make_prompts(processor, [4, 9])
    schedule = {(row, 2): model.config.latent_start_id for row in range(4)}
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(decode(model, inputs, schedule, do_sample=True, top_k=5, num_return_sequences=2))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert ((outputs[0].sequences == model.config.latent_token_id).sum(1) == 4).all()
    assert outputs[0].latents.shape[0] == 4


def test_streamer_and_static_cache(model, processor):
    inputs = make_prompts(processor, [4])
    schedule = {(0, 2): model.config.latent_start_id}
    plain = decode(model, inputs, schedule)
    static = decode(model, inputs, schedule, cache_implementation="static", disable_compile=True)
    assert torch.equal(plain.sequences, static.sequences)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10)
    output = decode(model, inputs, schedule, streamer=streamer)
    text = processor.tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "".join(streamer) == text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2}, "beam"),
        ({"use_cache": False}, "use_cache"),
        ({"prompt_lookup_num_tokens": 3}, "assisted"),
        ({"cache_implementation": "paged"}, "Continuous batching"),
    ],
)
def test_what_cannot_be_exact_is_refused(model, processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**make_prompts(processor, [4]), max_new_tokens=4, **kwargs)


def test_prompts_whose_latents_have_no_place_are_refused(model, processor):
    inputs = make_prompts(processor, [4])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)
    for kwargs in ({"latent_embeds": embeds[:, 1:]}, {"latent_embeds": embeds, "prefill_chunk_size": 8}):
        with pytest.raises(ValueError, match="as long as the prompt"):
            model.generate(**inputs, **kwargs, max_new_tokens=2)


def test_continuous_batching_is_refused(model):
    with pytest.raises(ValueError, match="Continuous batching"):
        model.generate_batch([[1, 2]])


@pytest.mark.parametrize(
    "wrong", [{"latent_size": 0}, {"compress_strategy": "mean"}, {"latent_scale": "l2"}], ids=lambda w: next(iter(w))
)
def test_config_refuses_unknown_values(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FourDThinkerConfig(**wrong)


def test_old_layout_checkpoints_load_whole(model, tmp_path):
    """Keys as the Qwen2.5-VL repositories have them: `visual.*`, `model.layers.*`."""
    from safetensors.torch import save_file

    old = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            old[name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")] = tensor.clone()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    loaded, info = FourDThinkerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
