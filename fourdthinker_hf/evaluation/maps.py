"""Do the maps point at something? A test on simulated clips, where the object of each mental image is known.

The model answers; each mental image is compared with the video's frames (`imagery.py`), and two things are asked:
what share of the map's mass lies inside the object's exact mask, and whether the step it resembles most is the one
pictured.
The same is asked of *shuffled* latents: those of another clip's mental image, laid over this clip. A map means
something as far as it does better than those. `source` says which latents: the model's own or the target frames'.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.records import Record, read_records
from ..data.simulation import clip_from_record
from ..hooks import blocks_of
from ..imagery import best_frame, similarity_maps, video_features
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..processing_fourdthinker import FourDThinkerProcessor
from .runner import batch_inputs


def map_test(
    model: str, benchmark: str, out: str, num: int = 100, source: str = "model", batch_size: int = 32, seed: int = 0
) -> dict:
    """Score the maps of the first `num` records of `benchmark` that have imagery; write `out/maps.json`.

    Returns, for own and shuffled latents, `mass` (share of the positive map inside the object's mask, mean over mental
    images) and `best_step` (share whose best step is the target's, over images of objects that move); the paired
    `gain` in both with 95% bootstrap intervals; and `area`, the mask's own share of the video: what a flat map gets.
    """
    if source not in ("model", "targets"):
        raise ValueError(f"source must be 'model' or 'targets', got {source!r}")
    network = FourDThinkerForConditionalGeneration.from_pretrained(model).eval()
    processor = FourDThinkerProcessor.from_pretrained(model)
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
        output = network.generate(**inputs, max_new_tokens=256, do_sample=False, return_dict_in_generate=True)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        blocks = [blocks_of(t, v, network.config) for t, v in zip(new, output.latents, strict=True)]
    else:
        blocks = [_target_blocks(network, processor, record) for record in records]
    patch = processor.video_processor.temporal_patch_size
    cases = []
    for record, clip_features, images in zip(records, features, blocks, strict=True):
        clip = clip_from_record(record)
        names = [thing.name for thing in clip.scene.things]
        steps, h, w = clip_features.shape[:3]
        times = np.arange(steps * patch) / processor.fps
        frames = np.abs(clip.timestamps[:, None] - times).argmin(0).reshape(steps, patch)
        for image, target in zip(images, record.source["targets"], strict=False):
            number = names.index(target["object"])
            mask = (clip.masks[frames] == number + 1).any(1).astype(np.float32)  # (T, H, W)
            cover = np.stack([np.asarray(Image.fromarray(m).resize((w, h), Image.Resampling.BOX)) for m in mask])
            path = clip.truth.centres[:, number]
            cases.append({
                "latents": image.float(), "features": clip_features.float(), "cover": cover,
                "step": int(np.abs(times - target["time"]).argmin() // patch),
                "moves": bool(np.linalg.norm(path[-1] - path[0]) > clip.frames.shape[1] / 6),
            })  # fmt: skip
    return cases


def _target_blocks(network, processor, record: Record) -> list[torch.Tensor]:
    images = [Image.open(path).convert("RGB") for path in record.imagery]
    frames = processor.image_processor(images, return_tensors="pt")
    targets = network.model.get_latent_targets(frames["pixel_values"], frames["image_grid_thw"])
    return list(targets.split(network.config.latent_size))


def _scores(case: dict, latents: torch.Tensor, latent_mean: list[float] | None) -> tuple[float, float]:
    maps = similarity_maps(latents, case["features"], latent_mean).numpy()
    positive = maps.clip(min=0)
    mass = float((positive * case["cover"]).sum() / max(positive.sum(), 1e-12))
    return mass, float(best_frame(maps) == case["step"])


def _compare(cases: list[dict], latent_mean: list[float] | None, rng: np.random.Generator) -> dict:
    shift = int(rng.integers(1, len(cases)))
    own = np.array([_scores(case, case["latents"], latent_mean) for case in cases])
    others = [cases[(i + shift) % len(cases)]["latents"] for i in range(len(cases))]
    shuffled = np.array([_scores(c, latents, latent_mean) for c, latents in zip(cases, others, strict=True)])
    moving = np.array([case["moves"] for case in cases])
    report = {"area": float(np.mean([case["cover"].mean() for case in cases])), "num_moving": int(moving.sum())}
    for name, column, rows in (("mass", 0, np.ones(len(cases), bool)), ("best_step", 1, moving)):
        a, b = own[rows, column], shuffled[rows, column]
        resampled = rng.integers(0, len(a), (2000, len(a)))
        low, high = np.percentile((a - b)[resampled].mean(1), [2.5, 97.5])
        report[name] = {"own": float(a.mean()), "shuffled": float(b.mean()), "gain": float((a - b).mean()),
                        "low": float(low), "high": float(high)}  # fmt: skip
    return report
