"""Features of videos and target frames, computed once: a frozen tower makes the same ones in every epoch.

    store = FeatureStore("features", processor, model)
    store.fill(model, processor, records)   # runs the tower on what is not there yet, one file a clip or frame
    store.clip(video="clip.mp4")            # reads: features, grid and times; nothing is decoded

A file is found by the content of what it was made of, in a folder named by the processor's settings and the tower's
weights, so nothing stale is ever read, runs can share a folder, and what an interrupted run made is kept. Files are
written aside and renamed: several processes, on several machines, may fill one folder. Each clip is encoded alone, so
its features do not depend on what stood beside it in a batch.
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
from .collator import CLIP, DIFTCollator

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """What the tower made of a clip or a frame: `features` `(n, hidden)` after the merger, in raster order; `grid`
    `(3,)` int64, patches in time, height and width; `times` `(frames,)` float64 in seconds, empty for a frame."""

    features: torch.Tensor
    grid: torch.Tensor
    times: torch.Tensor


class FeatureStore:
    """Encoded clips and frames in `folder`, for one tower and one processor. It holds neither, so it travels to
    workers cheaply. `bf16`: the tower runs, and in training would run, under autocast."""

    def __init__(self, folder: str | os.PathLike, processor: FourDThinkerProcessor, model, bf16: bool = False):
        tower = model.model.visual
        settings = [
            processor.fps,
            processor.max_frames,
            processor.pair_seconds,
            processor.video_processor.to_dict(),
            processor.image_processor.to_dict(),
            tower.config.to_dict(),
            str(tower.dtype),
            bf16,
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        with _whole(tower):
            for name, tensor in tower.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        self.bf16 = bf16
        self.folder = Path(folder) / digest.hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def clip(self, video=None, frames=None, timestamps=None) -> Encoded:
        """A clip, given as in a record. `ValueError` if it was not encoded, or its file is damaged."""
        return self._read(_clip_key(video, frames, timestamps), video or "a clip of frames")

    def frame(self, image) -> Encoded:
        """A target frame: path, PIL image or array. Errors as in `clip`."""
        return self._read(_key("frame", [image]), image)

    def fill(
        self,
        model,
        processor: FourDThinkerProcessor,
        records: Sequence[Record],
        num_workers: int = 0,
        skip_bad: bool = False,
    ) -> int:
        """Encode the clips and target frames of `records` that are not there yet; `num_workers` processes decode.

        Of several processes each encodes its share, then waits for the others. Returns how many this one encoded.
        Errors are those of the records and their files; with `skip_bad` they are passed over.
        """
        state = PartialState()
        device = state.device
        tower = model.model.visual.to(device)
        missing = self._missing(records, state, skip_bad)
        opener = Opener(processor, skip_bad)
        opened = DataLoader(missing, batch_size=None, num_workers=num_workers, collate_fn=opener)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        with _whole(tower), torch.no_grad(), autocast:
            for item in tqdm(opened, "vision tower", unit="file", disable=None, mininterval=5):
                if item is not None:
                    key, pixels, grid, times = item
                    made = model.get_video_features(pixels.to(device), grid.to(device)).pooler_output[0]
                    self._write(key, {"features": made.cpu().contiguous(), "grid": grid[0], "times": times})
        state.wait_for_everyone()
        return len(missing)

    def _missing(self, records: Sequence[Record], state: PartialState, skip_bad: bool) -> list[tuple]:
        """Keys and sources of this process's share; neighbours stay together, they often share a clip."""
        first, last = (len(records) * (state.process_index + i) // state.num_processes for i in (0, 1))
        found = {}
        for number in range(first, last):
            try:
                record = records[number]
                source = {name: getattr(record, name) for name in CLIP}
                found[_clip_key(**source)] = source
                found |= {_key("frame", [image]): image for image in record.imagery}
            except (ValueError, OSError) as error:
                if not skip_bad:
                    raise
                logger.warning("not encoded: %s", error)
        return [(key, source) for key, source in found.items() if not self._path(key).exists()]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str, name) -> Encoded:
        path = self._path(key)
        try:
            return Encoded(**load_file(path))
        except FileNotFoundError:
            raise ValueError(f"{name}: has no features in {self.folder}; fill the store with it first") from None
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); remove it, and the next run makes it again") from error

    def _write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
        save_file(tensors, aside)
        os.replace(aside, path)


def _whole(tower):
    """The tower's weights, gathered where ZeRO-3 shards them; then processes may run it unequally often."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(tower.parameters()))


@dataclass
class Opener:
    """Opens what `fill` encodes; runs in its workers."""

    processor: FourDThinkerProcessor
    skip_bad: bool

    def __call__(self, item: tuple):
        """Key, patches `(n, channels * patch volume)`, grid `(1, 3)` and times of a clip or a frame; None if bad."""
        key, source = item
        try:
            return key, *(self.clip(**source) if isinstance(source, dict) else self.frame(source))
        except (ValueError, OSError) as error:
            if not self.skip_bad:
                raise
            logger.warning("not encoded: %s", error)

    def clip(self, **source):
        frames, times = open_frames(self.processor, **source)
        made = self.processor.video_processor(
            frames, do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt"
        )
        return made["pixel_values_videos"], made["video_grid_thw"], torch.from_numpy(times)

    def frame(self, image):
        made = self.processor.image_processor([Image.fromarray(open_image(image))], return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"], torch.empty(0, dtype=torch.float64)


def _clip_key(video, frames, timestamps) -> str:
    return _key("clip", [video]) if frames is None else _key(f"clip at {timestamps}", frames)


def _key(kind: str, images: Iterable) -> str:
    """Hash of what files, or images, hold, and of what they are taken for."""
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
    """[`DIFTCollator`], with features of `store` instead of pixels: nothing is decoded, and the tower never runs."""

    store: FeatureStore | None = None

    def open(self, row: dict) -> dict:
        """The row with `clip` and `targets`, each [`Encoded`]. `ValueError` if one is not there, or too small."""
        clip = self.store.clip(**{name: row.get(name) for name in CLIP})
        targets = [self.store.frame(image) for image in self.pictured(row)]
        for number, target in enumerate(targets, start=1):
            self.check_size(number, len(target.features))
        return {**row, "clip": clip, "targets": targets}

    def batch(self, texts: list[str], rows: list[dict]) -> dict:
        """The model's inputs: what the processor makes, with `mm_encoder_outputs` in place of the pixels."""
        clips, targets = [row["clip"] for row in rows], [target for row in rows for target in row["targets"]]
        token = self.processor.video_token
        texts = [
            text.replace(token, token * len(clip.features)).replace(OUTPUT_IMAGE, self.processor.latent_block)
            for text, clip in zip(texts, clips, strict=True)
        ]
        batch = dict(
            self.processor.tokenizer(
                texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
            )
        )
        batch["video_grid_thw"] = torch.stack([clip.grid for clip in clips])
        batch["second_per_grid_ts"] = self.processor.grid_seconds([clip.times.numpy() for clip in clips])
        encoded = {"video": clips}
        if targets:
            batch["image_grid_thw_latent"] = torch.stack([target.grid for target in targets])
            encoded["latent"] = targets
        batch["mm_encoder_outputs"] = {
            kind: BaseModelOutputWithPooling(pooler_output=[item.features for item in items])
            for kind, items in encoded.items()
        }
        return batch
