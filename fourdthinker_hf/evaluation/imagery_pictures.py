"""Tests whether the pictures that the imagery decoder draws show what the mental images should show, on held-out clips
whose target frames are known.

Two measures. PSNR, the peak signal-to-noise ratio to the true target frame in dB. And who-is-it: of ten target frames,
the true one and nine of other clips, is the true one the nearest to the picture by squared error? A random guess is
right one time in ten. Both are also given for the picture of another clip's latents (`shuffled`), for the mean of all
target frames (`mean`, PSNR only) and for the last frame that the video shows (`last_frame`).
"""

import json
from pathlib import Path

import numpy as np
import torch

from ..batch_inference import answer_batch, batch_inputs
from ..checkpoints import load_imagery_decoder, load_model
from ..data.records import Record, open_frames, read_records
from ..output_files import make_writable, write_whole
from ..training.imagery_decoder import square
from .imagery_maps import bootstrap_interval, target_blocks
from .statistics import wilson_interval

NUM_CANDIDATES = 10


def score_pictures(
    model: str,
    benchmark: str,
    out: str,
    num: int = 100,
    source: str = "model",
    batch_size: int = 32,
    seed: int = 0,
    revision: str | None = None,
    subfolder: str | None = None,
    device: str | None = None,
) -> dict:
    """Score the pictures for the first `num` records of `benchmark` that have imagery, and write `out/pictures.json`.

    Args:
        model: folder or Hub id of a checkpoint with an imagery decoder.
        source: "model" draws the latents that the model generates, "targets" those of the true target frames.
        seed: of the draw of the nine other frames and of the bootstrap.
        revision, subfolder, device: as in [`load_model`].

    Returns the number of mental images and, by name of the picture, `psnr` with its 95% bootstrap interval and
    `who_is_it`, the share of mental images whose true frame is found, with its Wilson interval. Raises `ValueError`
    without a decoder and for too few mental images.
    """
    if source not in ("model", "targets"):
        raise ValueError(f"source must be 'model' or 'targets', got {source!r}")
    records = [record for record in read_records(benchmark) if record.imagery][:num]
    make_writable(Path(out))
    network, processor = load_model(model, device, "float32", revision, subfolder)
    decoder = load_imagery_decoder(network)
    if decoder is None:
        raise ValueError(f"{model} has no imagery decoder; train/decoder.py trains one")
    cases = []
    for first in range(0, len(records), batch_size):
        cases += _cases(network, processor, records[first : first + batch_size], source, decoder.config.picture_size)
    clips = np.array([case["clip"] for case in cases])
    if any((clips != clip).sum() < NUM_CANDIDATES - 1 for clip in clips) or not cases:
        raise ValueError(
            f"{len(records)} answers about {len(set(clips))} clips have {len(cases)} mental images; the test needs, "
            f"for each, {NUM_CANDIDATES - 1} of other clips"
        )
    with torch.inference_mode():
        latents = torch.stack([case["latents"] for case in cases]).to(network.device)
        drawn = torch.cat([decoder(part).pictures.float().cpu() for part in latents.split(256)]).numpy()
    pictures = {name: np.stack([case[name] for case in cases]) / 255 for name in ("true", "last_frame")}
    result = {"source": source, "num": len(cases), **score_drawn(drawn.clip(0, 1), **pictures, clips=clips, seed=seed)}
    run = {"model": str(model), "revision": revision, "subfolder": subfolder, "benchmark": str(benchmark)}
    write_whole(Path(out) / "pictures.json", json.dumps({**run, **result}, indent=1))
    return result


@torch.inference_mode()
def _cases(network, processor, records: list[Record], source: str, size: int) -> list[dict]:
    """A case for each complete mental image: its `latents`, the `true` target frame and the `last_frame` of the video,
    both `(size, size, 3)` uint8, and the `clip`."""
    if source == "model":
        replies = answer_batch(network, processor, batch_inputs(processor, records).to(network.device))
        blocks = [reply.images for reply in replies]
    else:
        blocks = [target_blocks(network, processor, record) for record in records]
    cases = []
    for record, images in zip(records, blocks, strict=True):
        frames, _ = open_frames(processor, record.video, record.frames, record.timestamps)
        last = square(frames[-1], size).numpy()
        for image, target in zip(images, record.imagery, strict=False):
            if len(image) == network.config.latent_size:
                case = {"clip": record.video or record.id, "latents": image.float().cpu(), "last_frame": last}
                cases.append(case | {"true": square(target, size).numpy()})
    return cases


def score_drawn(drawn: np.ndarray, true: np.ndarray, last_frame: np.ndarray, clips: np.ndarray, seed: int = 0) -> dict:
    """The scores of pictures `(num, size, size, 3)`, 0 to 1, of the mental images of `clips` `(num,)`: see
    [`score_pictures`]."""
    rng = np.random.default_rng(seed)
    num = len(drawn)
    others = np.array([rng.choice(np.flatnonzero(clips != clip), NUM_CANDIDATES - 1, replace=False) for clip in clips])
    candidates = np.concatenate([np.arange(num)[:, None], others], 1)  # the true one is the first
    shown = {"drawn": drawn, "shuffled": drawn[others[:, 0]], "last_frame": last_frame}
    scores = {}
    for name, pictures in shown.items():
        errors = ((pictures[:, None] - true[candidates]) ** 2).mean((2, 3, 4))
        found = int((errors[:, 0] < errors[:, 1:].min(1)).sum())
        low, high = wilson_interval(found, num)
        scores[name] = _psnr(errors[:, 0], clips, rng) | {"who_is_it": {"rate": found / num, "low": low, "high": high}}
    scores["mean"] = _psnr(((true.mean(0) - true) ** 2).mean((1, 2, 3)), clips, rng)
    return scores


def _psnr(errors: np.ndarray, clips: np.ndarray, rng: np.random.Generator) -> dict:
    """The mean over pictures of the PSNR in dB, for their mean squared errors, with its interval."""
    values = -10 * np.log10(np.maximum(errors, 1e-10))
    low, high = bootstrap_interval(values, clips, rng)
    return {"psnr": {"mean": float(values.mean()), "low": low, "high": high}}
