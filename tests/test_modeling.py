"""The model on random weights: latent targets, sources of latents, rules of a block. Decoding: test_generation.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_loop import prompts

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration
from fourdthinker_hf.generation_fourdthinker import BlockLogitsProcessor, OutsideBlockLogitsProcessor
from fourdthinker_hf.modeling_fourdthinker import compress_features


def test_average_drops_the_remainder_and_groups_in_raster_order():
    features = torch.arange(10.0)[:, None]
    assert compress_features(features, (1, 2, 5), 4, "average").flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_grid_keeps_left_and_right_apart():
    features = torch.tensor([0.0, 0, 1, 1] * 2 + [2.0, 2, 3, 3] * 2)[:, None]
    assert compress_features(features, (1, 4, 4), 4, "grid").flatten().tolist() == [0, 1, 2, 3]


def test_grid_deals_cells_over_bands():
    """Seven cells on 3 x 3 features: bands of two, two and three."""
    features = torch.arange(9.0)[:, None]
    assert compress_features(features, (1, 3, 3), 7, "grid").flatten().tolist() == [0.5, 1.5, 3.5, 4.5, 6, 7, 8]


shapes = st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12))


@settings(deadline=None)
@given(shapes, st.integers(1, 64), st.sampled_from(["average", "grid"]))
def test_any_number_of_latents_from_any_frame_that_has_as_many_features(shape, size, strategy):
    """Each latent is a mean of features near it. In a grid, every feature is used and the order is kept."""
    t, h, w = shape
    available = h * w if strategy == "grid" else t * h * w
    features = torch.eye(t * h * w)  # what a latent holds is then the weight of each feature in it
    if available < size:
        with pytest.raises(ValueError, match=rf"has {available} features .* latent_size={size}\b"):
            compress_features(features, shape, size, strategy)
        return
    latents = compress_features(features, shape, size, strategy)
    assert latents.shape == (size, t * h * w)
    torch.testing.assert_close(latents.sum(1), torch.ones(size))
    if strategy == "grid":
        assert (latents.sum(0) > 0).all()
    else:
        assert (latents.sum(0) > 0).tolist() == [i < available // size * size for i in range(available)]
    weights = latents.view(size, t, h, w).sum(1)
    rows = (weights.sum(2) * torch.arange(h)).sum(1)
    columns = (weights.sum(1) * torch.arange(w)).sum(1)
    if strategy == "grid":
        keys = list(zip(rows.mul(1000).round().tolist(), columns.tolist(), strict=True))
        assert keys == sorted(keys) and len(set(keys)) == size


@pytest.mark.parametrize("strategy", ["average", "grid"])
def test_features_of_one_frame_never_reach_the_latents_of_another(tiny_folder, strategy):
    """Frames of three shapes in one call: changing the second changes its latents alone."""
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, compress_strategy=strategy).eval()
    grids = torch.tensor([[1, 4, 10], [1, 6, 6], [1, 10, 4]])
    pixels = torch.randn(int(grids.prod(1).sum()), 1176, generator=torch.Generator().manual_seed(0))
    before = model.model.get_latent_targets(pixels, grids)
    pixels[40:76] += 1
    after = model.model.get_latent_targets(pixels, grids)
    assert (before != after).any(1).tolist() == [False] * 4 + [True] * 4 + [False] * 4
    alone = model.model.get_latent_targets(pixels[76:], grids[2:])
    torch.testing.assert_close(alone, after[8:], atol=1e-5, rtol=0)


def test_a_pad_needs_exactly_one_source(model, processor):
    inputs = prompts(processor, [4])
    pad = model.config.latent_token_id
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[pad, pad]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match="2 <.latent_pad.> tokens but no latents"):
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
    inputs = prompts(processor, [4, 6])
    with torch.no_grad():
        given = model(**inputs)
        inputs.pop("mm_token_type_ids")
        derived = model(**inputs)
    assert torch.equal(given.logits, derived.logits)
    torch.testing.assert_close(model.lm_head(derived.last_hidden_state), derived.logits)


INF = float("inf")


def rules(early_end=False, greedy=True):
    config = FourDThinkerConfig(latent_size=2, latent_token_id=0, latent_start_id=1, latent_end_id=2)
    first, last = OutsideBlockLogitsProcessor(config), BlockLogitsProcessor(config, early_end, greedy)
    return lambda row, scores: last(torch.tensor([row]), first(torch.tensor([row]), scores))[0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([3, 4], [-INF, 1.0, -INF, 3.0, 4.0]),  # outside: neither pad nor end
        ([3, 1], [0.0, -INF, -INF, -INF, -INF]),  # opened: pad
        ([1, 0], [0.0, -INF, -INF, -INF, -INF]),  # one of two pads: pad
        ([0, 0], [-INF, -INF, 0.0, -INF, -INF]),  # full: end
    ],
)
@pytest.mark.parametrize("start", [[], [4, 1]])
def test_block_rule(start, row, expected):
    scores = torch.tensor([[0.5, 1.0, 2.0, 3.0, 4.0]])
    assert rules()(start + row, scores).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=5, max_size=5, unique=True))
def test_early_end_keeps_the_probability_of_the_end(values):
    scores = torch.tensor([values], dtype=torch.float32)
    ruled = rules(early_end=True, greedy=False)([4, 1], scores)
    torch.testing.assert_close(ruled.softmax(-1)[2], scores.softmax(-1)[0, 2])
    assert ruled.softmax(-1)[[1, 3, 4]].sum() == 0
    assert rules(early_end=True)([4, 1], scores).argmax() == (2 if scores.argmax() == 2 else 0)


@pytest.mark.parametrize(
    "wrong",
    [{"latent_size": 0}, {"compress_strategy": "mean"}, {"latent_scale": "l2"}],
    ids=lambda wrong: next(iter(wrong)),
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


def test_a_few_rows_get_the_logits_of_one(model):
    """The head computes 2 to 16 rows in its own way: the same logits and gradients as `Linear`, in the same shape."""
    torch.manual_seed(0)
    for rows in ((1, 1), (2, 1), (4, 4), (17,)):
        states = torch.randn(*rows, 192, requires_grad=True)
        results = []
        for head in (model.lm_head.forward, lambda x: torch.nn.functional.linear(x, model.lm_head.weight)):
            logits = head(states)
            assert logits.is_contiguous()
            results.append((logits, torch.autograd.grad(logits.square().sum(), states)[0]))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
