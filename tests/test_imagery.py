"""Maps of tensors that are small enough to compute by hand."""

import numpy as np
import pytest
import torch

from fourdthinker_hf.imagery import best_step, similarity_maps, slot_maps, video_features
from fourdthinker_hf.qa import VideoQA

# Two steps of one row of two features. What they share is one axis.
X, Y, COMMON, _ = torch.eye(4)
FEATURES = torch.stack([X + COMMON, Y + COMMON, -X + COMMON, -Y + COMMON]).view(2, 1, 2, 4)


def test_cosine_is_taken_after_removing_what_the_whole_clip_shares():
    maps, weights = slot_maps((X + COMMON)[None], FEATURES)
    assert maps.shape == (1, 2, 1, 2) and maps.dtype == torch.float32
    torch.testing.assert_close(maps[0], torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]))
    torch.testing.assert_close(weights, torch.ones(1))


def test_latents_are_centred_by_their_own_mean_where_the_checkpoint_has_one():
    shift = torch.tensor([0.0, 0.0, 0.6, 0.0])  # common to all latents, unlike any feature
    latent = (0.8 * X + shift)[None]
    maps, _ = slot_maps(latent, FEATURES, shift.tolist())
    torch.testing.assert_close(maps[0], torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]))


def test_lengths_do_not_matter():
    lengths = torch.tensor([0.1, 3.0, 50.0, 1.0]).view(2, 1, 2, 1)
    torch.testing.assert_close(
        slot_maps(0.01 * (X + COMMON)[None], lengths * FEATURES), slot_maps((X + COMMON)[None], FEATURES)
    )


def test_the_map_of_an_image_is_the_mean_over_its_slots_by_squared_length():
    maps = similarity_maps(torch.stack([X + COMMON, Y + COMMON]), FEATURES)
    torch.testing.assert_close(maps, torch.tensor([[[0.5, 0.5]], [[-0.5, -0.5]]]))
    maps, weights = slot_maps(torch.stack([X, Y + COMMON]), FEATURES)
    rest = [1 + 0.5, 0.5]  # |X - c|^2 and |(Y + COMMON) / sqrt(2) - c|^2, where c = COMMON / sqrt(2)
    torch.testing.assert_close(weights, torch.tensor(rest) / 2)
    torch.testing.assert_close(
        similarity_maps(torch.stack([X, Y + COMMON]), FEATURES), 0.75 * maps[0] + 0.25 * maps[1]
    )


def test_a_clip_that_is_the_same_everywhere_gives_zero():
    maps, _ = slot_maps(X[None], COMMON.expand(2, 2, 2, 4))
    assert maps.abs().max() == 0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 5\) and \(2, 1, 2, 4\)"):
        slot_maps(torch.zeros(1, 5), FEATURES)
    with pytest.raises(ValueError, match="without latents"):
        similarity_maps(torch.zeros(0, 4), FEATURES)


def test_best_step_holds_the_highest_value_not_the_highest_mean():
    assert best_step(np.array([[[0.5, 0.5]], [[-1.0, 0.9]], [[0.6, 0.6]]])) == 1


def test_video_features_are_the_models_own_in_raster_order(tiny_folder):
    qa = VideoQA.from_pretrained(tiny_folder)
    frames = np.random.default_rng(0).integers(0, 255, (4, 56, 84, 3), dtype=np.uint8)
    inputs = qa.processor.video_processor([frames], return_tensors="pt", do_sample_frames=False)
    (features,) = video_features(qa.model, inputs)
    assert features.shape == (2, 2, 3, 192) and not features.requires_grad
    expected = qa.model.model.get_video_features(**{k: inputs[k] for k in ("pixel_values_videos", "video_grid_thw")})
    torch.testing.assert_close(features.flatten(0, 2), expected.pooler_output[0])
