"""Do the maps point at something? A test on simulated clips, where the object of each mental image is known.

The model answers; each mental image is compared with the video's frames (`imagery.py`), and three things are asked:
what share of the map's mass lies inside the object's exact mask, whether the temporal step it resembles most is the
one pictured, and whether it is at most one step from it.
The same is asked of *shuffled* latents: those of another clip's mental image, laid over this clip. A map means
something as far as it does better than those. `source` says which latents: the model's own or the target frames'.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.records import Record, read_records
from ..data.simulation.generation import clip_from_record
from ..hub.files import load_model
from ..imagery import best_step, similarity_maps, video_features
from ..inference import answer_batch, batch_inputs


def map_test(
    model: str, benchmark: str, out: str, num: int = 100, source: str = "model", batch_size: int = 32, seed: int = 0
) -> dict:
    """Score the maps of the first `num` records of `benchmark` that have imagery; write `out/maps.json`.

    Returns three scores, means over mental images: `mass` (share of the positive map inside the object's mask),
    `best_step` (the best step is the target's) and `near_step` (it is at most one from it), the last two over images
    of objects that move. Each with `own` and `shuffled` latents, what `chance` gets (a flat map; any step, equally
    likely), and the paired `gain` of own over shuffled with its 95% bootstrap interval, resampled by clip.
    """
    if source not in ("model", "targets"):
        raise ValueError(f"source must be 'model' or 'targets', got {source!r}")
    network, processor = load_model(model, dtype="float32")
    records = [record for record in read_records(benchmark) if record.imagery][:num]
    cases = []
    for first in range(0, len(records), batch_size):
        cases += _cases(network, processor, records[first : first + batch_size], source)
    if len(cases) < 2:
        raise ValueError(f"{len(cases)} mental images in {len(records)} answers: too few to test")
    scores = _compare(cases, network.config.latent_mean, np.random.default_rng(seed))
    result = {"source": source, "num": len(cases), **scores}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run = {"model": str(model), "benchmark": str(benchmark)}
    (folder / "maps.json").write_text(json.dumps({**run, **result}, indent=1))
    return result


@torch.inference_mode()
def _cases(network, processor, records: list[Record], source: str) -> list[dict]:
    """One case per mental image: its latents, the clip's features `(T, h, w, hidden)`, masks `(T, h, w)`, the step."""
    inputs = batch_inputs(processor, records).to(network.device)
    features = video_features(network, inputs)
    if source == "model":
        blocks = [reply.images for reply in answer_batch(network, processor, inputs, max_new_tokens=256)]
    else:
        blocks = [_target_blocks(network, processor, record) for record in records]
    patch = processor.video_processor.temporal_patch_size
    cases = []
    for record, clip_features, images in zip(records, features, blocks, strict=True):
        clip = clip_from_record(record)
        names = [thing.name for thing in clip.scene.objects]
        steps, h, w = clip_features.shape[:3]
        times = np.arange(steps * patch) / processor.fps
        frames = np.abs(clip.timestamps[:, None] - times).argmin(0).reshape(steps, patch)
        for image, target in zip(images, record.source["targets"], strict=False):
            number = names.index(target["object"])
            mask = (clip.masks[frames] == number + 1).any(1).astype(np.float32)  # (T, H, W)
            cover = np.stack([np.asarray(Image.fromarray(m).resize((w, h), Image.Resampling.BOX)) for m in mask])
            path = clip.truth.centres[:, number]
            cases.append(
                {
                    "clip": record.id,
                    "latents": image.float(),
                    "features": clip_features.float(),
                    "cover": cover,
                    "step": int(np.abs(times - target["time"]).argmin() // patch),
                    "moves": bool(np.linalg.norm(path[-1] - path[0]) > clip.frames.shape[1] / 6),
                }
            )
    return cases


def _target_blocks(network, processor, record: Record) -> list[torch.Tensor]:
    images = [Image.open(path).convert("RGB") for path in record.imagery]
    frames = processor.image_processor(images, return_tensors="pt").to(network.device)
    targets = network.model.get_latent_targets(frames["pixel_values"], frames["image_grid_thw"])
    return list(targets.split(network.config.latent_size))


SCORES = ("mass", "best_step", "near_step")


def _scores(case: dict, latents: torch.Tensor, latent_mean: list[float] | None) -> tuple[float, float, float]:
    maps = similarity_maps(latents, case["features"], latent_mean).cpu().numpy()
    positive = maps.clip(min=0)
    mass = float((positive * case["cover"]).sum() / max(positive.sum(), 1e-12))
    apart = abs(best_step(maps) - case["step"])
    return mass, float(apart == 0), float(apart <= 1)


def _chance(case: dict) -> tuple[float, float, float]:
    apart = np.abs(np.arange(len(case["cover"])) - case["step"])
    return float(case["cover"].mean()), float((apart == 0).mean()), float((apart <= 1).mean())


def _compare(cases: list[dict], latent_mean: list[float] | None, rng: np.random.Generator) -> dict:
    far = len(cases) // 2  # in another clip
    others = [cases[(i + far) % len(cases)]["latents"] for i in range(len(cases))]
    own = np.array([_scores(case, case["latents"], latent_mean) for case in cases])
    shuffled = np.array([_scores(case, latents, latent_mean) for case, latents in zip(cases, others, strict=True)])
    chance = np.array([_chance(case) for case in cases])
    moving = np.array([case["moves"] for case in cases])
    clips = np.array([case["clip"] for case in cases])
    report = {"num_moving": int(moving.sum())}
    for column, name in enumerate(SCORES):
        rows = np.ones(len(cases), bool) if name == "mass" else moving
        gains = (own - shuffled)[rows, column]
        low, high = _bootstrap(gains, clips[rows], rng)
        means = {
            key: float(of[rows, column].mean())
            for key, of in (("own", own), ("shuffled", shuffled), ("chance", chance))
        }
        report[name] = {**means, "gain": float(gains.mean()), "low": low, "high": high}
    return report


def _bootstrap(values: np.ndarray, clips: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95% percentile interval of the mean of `values`, drawn 2000 times by clip: images of one clip are alike."""
    names, clip = np.unique(clips, return_inverse=True)
    sums, counts = np.bincount(clip, values), np.bincount(clip)
    drawn = rng.integers(0, len(names), (2000, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
