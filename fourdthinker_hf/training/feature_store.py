"""Computes the vision features of videos and target frames once and stores them: a frozen vision tower gives the same
features in every epoch.

    store = FeatureStore("features", processor, model)
    store.fill(model, processor, records)   # runs the tower on what is missing; writes one file a clip or frame
    store.clip(video="clip.mp4")            # reads features, grid and seconds per grid; decodes nothing

A file is named by a hash of the content that it was made from, in a folder named by a hash of the processor's settings
and the tower's weights. So no outdated file is ever read, runs can share a folder, and the work of an interrupted run
is kept. Files are written under a temporary name and renamed, so several processes on several machines may fill one
folder. Each clip is encoded alone, so its features do not depend on the rest of a batch.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.records import Record, open_frames, open_image
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor
from .collator import VIDEO_COLUMNS, DIFTCollator

logger = logging.getLogger(__name__)


class VisionFeatures(NamedTuple):
    """The vision tower's output for a clip or a frame: `features` `(n, hidden)` after the merger, in raster order;
    `grid` `(3,)` int64, patches in time, height and width; `second_per_grid` `(1,)` float32, empty for a frame."""

    features: torch.Tensor
    grid: torch.Tensor
    second_per_grid: torch.Tensor


class FeatureStore:
    """Stored features of clips and frames in `folder`, for one vision tower and one processor. It holds neither of
    the two, so sending it to the dataloader's workers is cheap. With `bf16` the tower runs under autocast, as it would
    in training."""

    def __init__(self, folder: str | os.PathLike, processor: FourDThinkerProcessor, model, bf16: bool = False):
        tower = model.model.visual
        settings = [
            processor.fps,
            processor.max_frames,
            processor.pair_seconds,
            processor.second_per_grid,
            processor.video_processor.to_dict(),
            processor.image_processor.to_dict(),
            tower.config.to_dict(),
            str(tower.dtype),
            bf16,
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        with _gathered(tower):
            for name, tensor in tower.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        self.bf16 = bf16
        self.folder = Path(folder) / digest.hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def clip(self, video=None, frames=None, timestamps=None) -> VisionFeatures:
        """Reads the features of a clip, given as in a record. Raises `ValueError` if they are missing or damaged."""
        return self._read(_clip_key(video, frames, timestamps), video or "a clip of frames")

    def frame(self, image) -> VisionFeatures:
        """Reads the features of a target frame: a path, PIL image or array. Errors as in `clip`."""
        return self._read(_key("frame", [image]), image)

    def has_frame(self, image) -> bool:
        """Whether the features of a target frame are stored; False too for one that cannot be read."""
        try:
            return self._path(_key("frame", [image])).exists()
        except (ValueError, OSError):
            return False

    def fill(
        self,
        model,
        processor: FourDThinkerProcessor,
        records: Sequence[Record],
        num_workers: int = 0,
        skip_bad: bool = False,
        imagery: bool = True,
        clips: bool = True,
    ) -> int:
        """Encodes what is missing of the `clips` and the `imagery` (target frames) of `records`; `num_workers`
        processes decode them.

        Each of several processes encodes its share and then waits for the others. Returns how many items this process
        encoded. Errors are those of the records and their files; with `skip_bad` such records and files are skipped.
        """
        state = PartialState()
        device = state.device
        tower = model.model.visual.to(device)
        missing = self._missing(records, state, skip_bad, imagery, clips)
        preprocess = VisionPreprocessor(processor, skip_bad)
        loader = DataLoader(missing, batch_size=None, num_workers=num_workers, collate_fn=preprocess)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        with _gathered(tower), torch.no_grad(), autocast:
            for item in tqdm(loader, "vision tower", unit="file", disable=None, mininterval=5):
                if item is not None:
                    key, pixels, grid, seconds = item
                    features = model.get_video_features(pixels.to(device), grid.to(device)).pooler_output[0]
                    tensors = {"features": features.cpu().contiguous(), "grid": grid[0], "second_per_grid": seconds}
                    self._write(key, tensors)
        state.wait_for_everyone()
        return len(missing)

    def _missing(
        self, records: Sequence[Record], state: PartialState, skip_bad: bool, imagery: bool, clips: bool
    ) -> list[tuple]:
        """Keys and sources of this process's share of the missing items. Each process takes consecutive records,
        because these often share a clip."""
        first, last = (len(records) * (state.process_index + i) // state.num_processes for i in (0, 1))
        found = {}
        for number in range(first, last):
            try:
                record = records[number]
                if clips:
                    source = {name: getattr(record, name) for name in VIDEO_COLUMNS}
                    found[_clip_key(**source)] = source
                if imagery:
                    found |= {_key("frame", [image]): image for image in record.imagery}
            except (ValueError, OSError) as error:
                if not skip_bad:
                    raise
                logger.warning("This item is not encoded: %s", error)
        return [(key, source) for key, source in found.items() if not self._path(key).exists()]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str, name) -> VisionFeatures:
        path = self._path(key)
        try:
            return VisionFeatures(**load_file(path))
        except FileNotFoundError:
            raise ValueError(f"{name} has no features in {self.folder}; call fill with its record first") from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and the next run makes it again") from error

    def _write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
        save_file(tensors, temporary)
        os.replace(temporary, path)


def _gathered(tower):
    """A context in which the tower's weights are gathered if ZeRO-3 shards them, so that processes may run the tower
    unequally often."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(tower.parameters()))


@dataclass
class VisionPreprocessor:
    """Opens a clip or a frame and makes the vision tower's inputs. `fill` runs it in its workers."""

    processor: FourDThinkerProcessor
    skip_bad: bool

    def __call__(self, item: tuple):
        """Key, patches `(n, channels * patch volume)`, grid `(1, 3)` and seconds per grid of a clip or a frame; None
        for a file that is skipped because it cannot be read."""
        key, source = item
        try:
            return key, *(self.clip(**source) if isinstance(source, dict) else self.frame(source))
        except (ValueError, OSError) as error:
            if not self.skip_bad:
                raise
            logger.warning("This item is not encoded: %s", error)

    def clip(self, **source):
        frames, times = open_frames(self.processor, **source)
        inputs = self.processor.video_processor(
            frames, do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt"
        )
        return inputs["pixel_values_videos"], inputs["video_grid_thw"], self.processor.grid_seconds([times])

    def frame(self, image):
        inputs = self.processor.image_processor([Image.fromarray(open_image(image))], return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"], torch.empty(0)


def _clip_key(video, frames, timestamps) -> str:
    return _key("clip", [video]) if frames is None else _key(f"clip at {timestamps}", frames)


def _key(kind: str, images: Iterable) -> str:
    """Hash of the content of files or images, and of `kind`: the same frames are encoded differently as a clip and as
    target frames."""
    digest = hashlib.sha256(kind.encode())
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            with open(image, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            pixels = open_image(image)
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


@dataclass
class CachedCollator(DIFTCollator):
    """[`DIFTCollator`] with features from `store` in place of pixels: no video is decoded and the vision tower never
    runs."""

    store: FeatureStore | None = None

    def open(self, row: dict) -> dict:
        """Adds `clip` (None for a row with neither a video nor frames) and `targets`, each as [`VisionFeatures`].
        Raises `ValueError` if one is missing or too small."""
        source = {name: row.get(name) for name in VIDEO_COLUMNS}
        clip = None if source["video"] is None and source["frames"] is None else self.store.clip(**source)
        targets = [self.store.frame(image) for image in self.target_frames(row)]
        for number, target in enumerate(targets, start=1):
            self.check_num_features(number, len(target.features))
        return {**row, "clip": clip, "targets": targets}

    def model_inputs(self, texts: list[str], rows: list[dict]) -> dict:
        """The inputs that the processor would make, with `mm_encoder_outputs` in place of the pixels."""
        clips = [row["clip"] for row in rows if row["clip"] is not None]
        targets, token = [target for row in rows for target in row["targets"]], self.processor.video_token
        texts = [
            text.replace(token, token * len(row["clip"].features) if row["clip"] else "").replace(
                OUTPUT_IMAGE, self.processor.latent_block
            )
            for text, row in zip(texts, rows, strict=True)
        ]
        batch = dict(
            self.processor.tokenizer(
                texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
            )
        )
        encoded = {}
        if clips:
            batch["video_grid_thw"] = torch.stack([clip.grid for clip in clips])
            batch["second_per_grid_ts"] = torch.cat([clip.second_per_grid for clip in clips])
            encoded["video"] = clips
        if targets:
            batch["image_grid_thw_latent"] = torch.stack([target.grid for target in targets])
            encoded["latent"] = targets
        batch["mm_encoder_outputs"] = {
            kind: BaseModelOutputWithPooling(pooler_output=[item.features for item in items])
            for kind, items in encoded.items()
        }
        return batch
