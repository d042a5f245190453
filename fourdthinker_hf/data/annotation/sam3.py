"""Objects found by SAM 3's video model (Hugging Face transformers) instead of by motion and colour.

It finds what nouns name, follows each through the shot, and gives every thing an identity. Which of them move by
themselves, and which one that rests is the landmark, is told from the masks as in `objects.py`.
"""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from transformers import Sam3VideoModel, Sam3VideoProcessor

from .camera import Camera
from .shots import Shot
from .tracking import Path, Track, View, choose_tracks, same_thing

NOUNS = ("person", "animal", "vehicle", "ball", "toy", "furniture", "sign")


class Sam3Segmenter:
    """Finds what `nouns` name. `source` is a folder or Hub id with a SAM 3 video model and its processor."""

    def __init__(
        self, source: str | os.PathLike[str], nouns: Sequence[str] = NOUNS, device: str | None = None
    ) -> None:
        if not nouns:
            raise ValueError("SAM 3 finds what nouns name; none are given")
        self.nouns = list(nouns)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        self.model = Sam3VideoModel.from_pretrained(source, dtype=self.dtype).to(self.device).eval()
        self.processor = Sam3VideoProcessor.from_pretrained(source)

    def __call__(self, shot: Shot, camera: Camera) -> list[Track]:
        """What moves in a shot, the surest first, then at most one landmark."""
        view = View(shot.frames, camera.homographies)
        size = (view.width, view.height)
        paths: list[Path] = []
        for name, sure, given in sorted(self.follow(shot.frames), key=lambda found: -found[1]):
            masks = np.stack(
                [cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_AREA) > 0 for mask in given]
            )
            if masks.any() and not any(same_thing(masks, path.masks) for path in paths):  # found by two nouns
                paths.append(Path(masks, given, sure, name))
        return choose_tracks(view, paths)

    @torch.inference_mode()
    def follow(self, frames: np.ndarray) -> list[tuple[str, float, np.ndarray]]:
        """(noun, mean score from 0 to 1, masks (T, H, W) bool) of each thing found in frames (T, H, W, 3) uint8."""
        session = self.processor.init_video_session(
            video=list(frames), inference_device=self.device, video_storage_device="cpu", dtype=self.dtype
        )
        self.processor.add_text_prompt(session, self.nouns)
        names: dict[int, str] = {}
        scores: dict[int, list[float]] = {}
        masks: dict[int, np.ndarray] = {}
        for output in self.model.propagate_in_video_iterator(session):
            shown = self.processor.postprocess_outputs(session, output)
            for noun, numbers in shown["prompt_to_obj_ids"].items():
                names |= dict.fromkeys(numbers, noun)
            things = zip(
                shown["object_ids"].tolist(), shown["scores"].tolist(), shown["masks"].cpu().numpy(), strict=True
            )
            for number, score, mask in things:
                masks.setdefault(number, np.zeros(frames.shape[:3], bool))[output.frame_idx] = mask
                scores.setdefault(number, []).append(score)
        return [(names[number], float(np.mean(scores[number])), masks[number]) for number in masks]
