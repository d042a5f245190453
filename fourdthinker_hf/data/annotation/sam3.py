"""Finds objects with SAM 3's video model (from transformers) instead of by motion and colour.

The model finds what nouns name and follows each object through the shot. Which objects move by themselves, and which
one is the landmark, is decided from their masks as in `tracking.py`.
"""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from transformers import Sam3VideoModel, Sam3VideoProcessor

from .camera_motion import CameraMotion
from .shots import Shot
from .tracking import CandidateTrack, ScaledShot, Track, choose_tracks, is_same_object

NOUNS = ("person", "animal", "vehicle", "ball", "toy", "furniture", "sign")


class Sam3Segmenter:
    """Finds what `nouns` name. `source` is a folder or Hub id with a SAM 3 video model and its processor."""

    def __init__(
        self, source: str | os.PathLike[str], nouns: Sequence[str] = NOUNS, device: str | None = None
    ) -> None:
        if not nouns:
            raise ValueError("SAM 3 finds what nouns name, but none are given.")
        self.nouns = list(nouns)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        self.model = Sam3VideoModel.from_pretrained(source, dtype=self.dtype).to(self.device).eval()
        self.processor = Sam3VideoProcessor.from_pretrained(source, trust_remote_code=False)

    def __call__(self, shot: Shot, camera: CameraMotion) -> list[Track]:
        """The objects of a shot that move, by descending confidence, then at most one landmark."""
        scaled = ScaledShot(shot.frames, camera.homographies)
        size = (scaled.width, scaled.height)
        candidates: list[CandidateTrack] = []
        for noun, score, full_masks in sorted(self.track(shot.frames), key=lambda found: -found[1]):
            masks = np.stack(
                [cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_AREA) > 0 for mask in full_masks]
            )
            is_known = any(is_same_object(masks, candidate.masks) for candidate in candidates)  # found by two nouns
            if masks.any() and not is_known:
                candidates.append(CandidateTrack(masks, full_masks, score, noun))
        return choose_tracks(scaled, candidates)

    @torch.inference_mode()
    def track(self, frames: np.ndarray) -> list[tuple[str, float, np.ndarray]]:
        """(noun, mean score from 0 to 1, masks (T, H, W) bool) of each object found in frames (T, H, W, 3) uint8."""
        session = self.processor.init_video_session(
            video=list(frames), inference_device=self.device, video_storage_device="cpu", dtype=self.dtype
        )
        self.processor.add_text_prompt(session, self.nouns)
        nouns: dict[int, str] = {}
        scores: dict[int, list[float]] = {}
        masks: dict[int, np.ndarray] = {}
        for output in self.model.propagate_in_video_iterator(session):
            result = self.processor.postprocess_outputs(session, output)
            for noun, ids in result["prompt_to_obj_ids"].items():
                nouns |= dict.fromkeys(ids, noun)
            objects = zip(
                result["object_ids"].tolist(), result["scores"].tolist(), result["masks"].cpu().numpy(), strict=True
            )
            for object_id, score, mask in objects:
                masks.setdefault(object_id, np.zeros(frames.shape[:3], bool))[output.frame_idx] = mask
                scores.setdefault(object_id, []).append(score)
        return [(nouns[object_id], float(np.mean(scores[object_id])), masks[object_id]) for object_id in masks]
