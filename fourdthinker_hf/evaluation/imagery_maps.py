"""Tests whether the similarity maps of mental images point at the right object, on simulated clips, where it is known.

The map of each mental image over the video (`imagery.py`) gets three scores: what share of it lies inside the object's
exact mask, whether its most similar temporal step is that of the target frame, and whether it is at most one step from
that. Shuffled latents, those of a mental image of another clip, get the same scores on this clip. A map is informative
as far as it scores higher than these.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..batch_inference import answer_batch, batch_inputs
from ..checkpoints import load_model
from ..data.records import Record, read_records
from ..data.simulation.generate_records import clip_from_record
from ..imagery import best_step, similarity_maps, video_features
from ..output_files import make_writable, write_whole


def score_maps(
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
    """Score the maps of the first `num` records of `benchmark` that have imagery, and write `out/maps.json`.

    Args:
        model: folder or Hub id of the checkpoint.
        benchmark: JSONL file of records that `simulate` wrote.
        source: "model" scores the latents that the model generates, "targets" those of the true target frames.
        seed: of the bootstrap.
        revision, subfolder, device: as in [`load_model`].

    Returns three scores, each a mean over mental images: `mass` (the share of the positive part of the map inside the
    object's mask), `best_step` (the most similar step is the target's) and `near_step` (it is at most one step from
    it). The last two leave out objects that do not move. Each score has the values of the `own` and the `shuffled`
    latents, that of `chance` (a constant map; all steps equally likely), and the `gain` of own over shuffled with its
    95% bootstrap interval `low` and `high`, resampled by clip. Raises `ValueError` if there are too few mental images.
    """
    if source not in ("model", "targets"):
        raise ValueError(f"source must be 'model' or 'targets', got {source!r}")
    records = [record for record in read_records(benchmark) if record.imagery][:num]
    make_writable(Path(out))
    network, processor = load_model(model, device, "float32", revision, subfolder)
    cases = []
    for first in range(0, len(records), batch_size):
        cases += _cases(network, processor, records[first : first + batch_size], source)
    if len(cases) < 2:
        raise ValueError(f"{len(records)} answers have {len(cases)} mental images: the test needs at least two")
    scores = _score_cases(cases, network.config.latent_mean, np.random.default_rng(seed))
    result = {"source": source, "num": len(cases), **scores}
    run = {"model": str(model), "revision": revision, "subfolder": subfolder, "benchmark": str(benchmark)}
    write_whole(Path(out) / "maps.json", json.dumps({**run, **result}, indent=1))
    return result


SCORES = ("mass", "best_step", "near_step")


@torch.inference_mode()
def _cases(network, processor, records: list[Record], source: str) -> list[dict]:
    """A case for each mental image: its `latents`, the clip's `features` `(T, h, w, hidden)`, the `mask` of the object
    `(T, h, w)` with the share of each cell that it covers, the `step` of the target frame, and whether the object
    `moves`."""
    inputs = batch_inputs(processor, records).to(network.device)
    features = video_features(network, inputs)
    if source == "model":
        blocks = [reply.images for reply in answer_batch(network, processor, inputs, max_new_tokens=256)]
    else:
        blocks = [target_blocks(network, processor, record) for record in records]
    patch_size = processor.video_processor.temporal_patch_size
    cases = []
    for record, clip_features, images in zip(records, features, blocks, strict=True):
        clip = clip_from_record(record)
        names = [thing.name for thing in clip.scene.objects]
        num_steps, h, w = clip_features.shape[:3]
        times = np.asarray(processor.open_video(record.video)[1])
        times = np.pad(times, (0, num_steps * patch_size - len(times)), mode="edge")  # as the frames are
        frames = np.abs(clip.timestamps[:, None] - times).argmin(0).reshape(num_steps, patch_size)
        for image, target in zip(images, record.source["targets"], strict=False):
            number = names.index(target["object"])
            is_object = (clip.masks[frames] == number + 1).any(1).astype(np.float32)  # (T, H, W)
            cells = [Image.fromarray(step).resize((w, h), Image.Resampling.BOX) for step in is_object]
            path = clip.truth.centres[:, number]
            cases.append(
                {
                    "clip": record.id,
                    "latents": image.float(),
                    "features": clip_features.float(),
                    "mask": np.stack([np.asarray(cell) for cell in cells]),
                    "step": int(np.abs(times - target["time"]).argmin() // patch_size),
                    "moves": bool(np.linalg.norm(path[-1] - path[0]) > clip.frames.shape[1] / 6),
                }
            )
    return cases


def target_blocks(network, processor, record: Record) -> list[torch.Tensor]:
    """The latents `(latent_size, hidden)` of each true target frame of a record."""
    images = [Image.open(path).convert("RGB") for path in record.imagery]
    frames = processor.image_processor(images, return_tensors="pt").to(network.device)
    targets = network.model.get_latent_targets(frames["pixel_values"], frames["image_grid_thw"])
    return list(targets.split(network.config.latent_size))


def _scores(case: dict, latents: torch.Tensor, latent_mean: list[float] | None) -> tuple[float, float, float]:
    """The three `SCORES` of these latents on the clip of `case`."""
    maps = similarity_maps(latents, case["features"], latent_mean).cpu().numpy()
    positive = maps.clip(min=0)
    mass = float((positive * case["mask"]).sum() / max(positive.sum(), 1e-12))
    distance = abs(best_step(maps) - case["step"])
    return mass, float(distance == 0), float(distance <= 1)


def _chance_scores(case: dict) -> tuple[float, float, float]:
    distances = np.abs(np.arange(len(case["mask"])) - case["step"])
    return float(case["mask"].mean()), float((distances == 0).mean()), float((distances <= 1).mean())


def _score_cases(cases: list[dict], latent_mean: list[float] | None, rng: np.random.Generator) -> dict:
    offset = len(cases) // 2  # so that the other case is of another clip
    others = [cases[(i + offset) % len(cases)]["latents"] for i in range(len(cases))]
    scores = {
        "own": np.array([_scores(case, case["latents"], latent_mean) for case in cases]),
        "shuffled": np.array([_scores(case, other, latent_mean) for case, other in zip(cases, others, strict=True)]),
        "chance": np.array([_chance_scores(case) for case in cases]),
    }
    is_moving = np.array([case["moves"] for case in cases])
    clips = np.array([case["clip"] for case in cases])
    report = {"num_moving": int(is_moving.sum())}
    for column, name in enumerate(SCORES):
        rows = np.ones(len(cases), bool) if name == "mass" else is_moving
        gains = (scores["own"] - scores["shuffled"])[rows, column]
        low, high = bootstrap_interval(gains, clips[rows], rng)
        means = {key: float(values[rows, column].mean()) for key, values in scores.items()}
        report[name] = {**means, "gain": float(gains.mean()), "low": low, "high": high}
    return report


def bootstrap_interval(values: np.ndarray, clips: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% percentile interval of the mean of `values`. Its 2000 samples draw whole clips, because the mental
    images of one clip depend on one another."""
    names, clip = np.unique(clips, return_inverse=True)
    sums, counts = np.bincount(clip, values), np.bincount(clip)
    samples = rng.integers(0, len(names), (2000, len(names)))
    low, high = np.percentile(sums[samples].sum(1) / counts[samples].sum(1), [2.5, 97.5])
    return float(low), float(high)
