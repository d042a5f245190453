"""SAM 3's video model, real code with tiny random weights, is loaded from a folder and tracks objects in a shot."""

import string

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTokenizer,
    Sam2VideoVideoProcessor,
    Sam3ImageProcessor,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
)

from fourdthinker_hf.data.annotation.camera_motion import CameraMotion
from fourdthinker_hf.data.annotation.sam3 import Sam3Segmenter
from fourdthinker_hf.data.annotation.shots import Shot

PATCH, SIDE, WIDE = 14, 8, 128  # WIDE must be a multiple of the 64 channels of the tracker's memory, and larger
NOUNS = ("person", "ball")


def make_config() -> Sam3VideoConfig:
    size = {"hidden_size": WIDE, "intermediate_size": 32, "num_attention_heads": 2}
    backbone = {
        "model_type": "sam3_vit_model",
        **size,
        "num_hidden_layers": 2,
        "image_size": PATCH * SIDE,
        "pretrain_image_size": PATCH * SIDE,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": WIDE,
        "backbone_feature_sizes": [[scale * SIDE] * 2 for scale in (4, 2, 1)],
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 54,
        **size,
        "num_hidden_layers": 1,
        "max_position_embeddings": 32,
        "bos_token_id": 52,
        "eos_token_id": 53,
    }
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": text,
        "geometry_encoder_config": {**size, "num_layers": 1},
        "detr_encoder_config": {**size, "num_layers": 1},
        "detr_decoder_config": {**size, "num_layers": 1, "num_queries": 2},
        "mask_decoder_config": {"hidden_size": WIDE, "num_attention_heads": 2},
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": vision,
        "image_size": PATCH * SIDE,
        "prompt_encoder_config": {"hidden_size": WIDE, "image_size": PATCH * SIDE},
        "mask_decoder_config": {
            "hidden_size": WIDE,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": WIDE,
        },
        "memory_attention_hidden_size": WIDE,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [SIDE, SIDE],
        "memory_encoder_hidden_size": WIDE,
        "mask_downsampler_embed_dim": WIDE,
        "memory_fuser_embed_dim": WIDE,
        "memory_fuser_intermediate_dim": 32,
        "memory_fuser_num_layers": 1,
    }
    # Random weights have no confidence: all detections count, and each is the object that was tracked there.
    bars = dict.fromkeys(
        ("score_threshold_detection", "new_det_thresh", "assoc_iou_thresh", "trk_assoc_iou_thresh"), 0.0
    )
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=4 * SIDE, **bars)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam3")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam3VideoModel(make_config())
    with torch.no_grad():  # a tracked object is always visible
        model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    model.save_pretrained(path)
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: k for k, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    size = {"height": PATCH * SIDE, "width": PATCH * SIDE}
    Sam3VideoProcessor(
        Sam3ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), CLIPTokenizer(vocab=vocabulary, merges=[])
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def segmenter(folder):
    return Sam3Segmenter(folder, NOUNS, device="cpu")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 60, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def found(segmenter, frames):
    return segmenter.track(frames)


def test_objects_are_tracked_from_frame_to_frame(found, frames):
    assert found
    for noun, score, masks in found:
        assert noun in NOUNS and 0 < score < 1
        assert masks.dtype == bool and masks.shape == frames.shape[:3]
    assert any(masks.any((1, 2)).all() for _, _, masks in found), "no object is tracked from first to last"


def test_tracks_depend_on_the_frames(segmenter, frames, found):
    again = segmenter.track(frames)
    other = segmenter.track(frames[::-1].copy())
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(found, again, strict=True))
    assert len(found) != len(other) or any(not np.array_equal(a[2], b[2]) for a, b in zip(found, other, strict=True))


def test_the_weights_are_those_of_the_folder(segmenter, folder):
    kept = Sam3VideoModel.from_pretrained(folder).state_dict()
    for name, value in segmenter.model.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_tracks_carry_the_masks_and_nouns(segmenter, frames, found):
    shot = Shot("noise.mp4", 0.0, 0.75, frames, np.arange(6) / 8)
    tracks = segmenter(shot, CameraMotion([], np.tile(np.eye(3), (5, 1, 1))))
    assert tracks and sum(not track.moving for track in tracks) <= 1
    for track in tracks:
        noun = next(noun for noun, _, masks in found if np.array_equal(masks, track.masks))
        assert f" {noun}" in track.description and 0 <= track.confidence <= 1


def test_needs_nouns(folder):
    with pytest.raises(ValueError, match="none are given"):
        Sam3Segmenter(folder, ())


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(OSError, match="model.safetensors"):
        Sam3Segmenter(tmp_path)
