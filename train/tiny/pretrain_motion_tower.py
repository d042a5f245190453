"""Pretrains the vision tower of the next tiny model to see motion, with dense labels on independent pairs of frames of
layered scenes. train/tiny/make.py has this command and those around it.

    python train/tiny/pretrain_motion_tower.py runs/tiny_1/tower --steps 60000 --workers 1

The tower is transformers' own for Qwen2.5-VL, with a small configuration; a temporal patch holds the two frames of a
pair, `PAIR_SECONDS` apart. From each merged feature a linear layer reads, for its four patches, the optical flow, the
flow that a still camera would see, how fast what is there grows on screen, whether it moves by itself, and its colour
and kind.

Three things let it learn within minutes. The first layers start as what an estimate of motion is made of: the patch
embedding has low-frequency waves of the two frames' mean and difference, the first SwiGLU has their products (a flow
estimate from gradients is made of these), and the attention of the second block looks at the neighbours. The batches
are small. The first steps have slow motions and clean pictures. The result in OUT is `tower.safetensors` and its
configuration. The same command continues an interrupted run from OUT/state.pt.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from fourdthinker_hf.data.simulation.cutouts import COLOURS, KINDS
from fourdthinker_hf.data.simulation.layered_scenes import FIRST_MOVER, Scene, optical_flow, render, sample_scene
from fourdthinker_hf.data.simulation.textures import folder_photos, make_textures, package_photos
from fourdthinker_hf.output_files import WORK, claim, files_hash, versions

PATCH = 14
PAIR_SECONDS = 0.2
SIZES = [(84, 168), (112, 140), (112, 112), (140, 112), (168, 84)]  # (height, width), as the processor makes them
SIZE_SHARES = [0.4, 0.2, 0.15, 0.1, 0.15]
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
HEADS = {"flow": 2, "own": 2, "growth": 1, "moves": 1, "colour": len(COLOURS) + 1, "kind": len(KINDS) + 1}
SMALL = {"flow": 0.3, "own": 0.3, "growth": 0.01}  # pixels; logarithm of a factor
EASY = 0.3  # share of the steps in which motions get faster and pictures worse
TEXTURES = 400
RARE = 8.0  # how much more a patch counts in which something moves, or is, than one of the background


def vision_config(out_hidden_size: int = 192) -> Qwen2_5_VLVisionConfig:
    return Qwen2_5_VLVisionConfig(
        depth=4,
        hidden_size=192,
        intermediate_size=512,
        num_heads=6,
        out_hidden_size=out_hidden_size,
        patch_size=PATCH,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=2**10 * PATCH,  # no windows: the frames are small
        fullatt_block_indexes=[0, 1, 2, 3],
        tokens_per_second=8,
        rope_parameters={"rope_type": "axial", "rope_theta": 100.0},
    )


# Start


@torch.no_grad()
def start_with_waves(tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Set the first layers to what an estimate of motion is made of; the rest stays random."""
    config = tower.config
    width, heads = config.hidden_size, config.num_heads
    places = torch.arange(PATCH) + 0.5
    wave = [torch.cos(math.pi * k * places / PATCH) for k in range(8)]
    keys = sorted(((u, v) for u in range(8) for v in range(8) if u + v), key=lambda key: key[0] ** 2 + key[1] ** 2)
    keys = keys[: min(40, (width - 8) // 2)]
    grey = torch.full((3, 1, 1, 1), 1 / 3)
    difference = 4 * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    kernel = 0.002 * torch.randn(width, 3, 2, PATCH, PATCH)
    count = len(keys)
    for i, (u, v) in enumerate(keys):
        picture = torch.outer(wave[u], wave[v]) / PATCH * (1 + math.hypot(u, v) / 2)
        kernel[i], kernel[count + i] = picture * grey / 2, picture * grey * difference
    level = 0.3 * 5 * torch.ones(PATCH, PATCH) / PATCH**2
    for channel in range(3):
        kernel[2 * count + channel] = 0
        kernel[2 * count + channel, channel] = level / 2
    kernel[2 * count + 3] = level * grey * difference
    tower.patch_embed.proj.weight.copy_(kernel)

    first = tower.blocks[0]  # its attention is silent at first, its products are mean x difference
    first.attn.proj.weight.zero_()
    first.attn.proj.bias.zero_()
    side = math.isqrt(config.intermediate_size)
    for projection in (first.mlp.gate_proj, first.mlp.up_proj):
        projection.weight.mul_(0.1)
        projection.bias.zero_()
    for i in range(side * side):
        first.mlp.gate_proj.weight[i, count + i % side] += 2
        first.mlp.up_proj.weight[i, i // side] += 2

    second, size = tower.blocks[1].attn, width // heads  # one neighbour a head, whatever it shows
    rates = tower.rotary_pos_emb.inv_freq
    neighbours = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)][:heads]
    slow = [*range(8), *range(count, count + 8), *range(2 * count, 2 * count + 4)][:size]
    weight, bias = second.qkv.weight, second.qkv.bias
    weight.mul_(0.1)
    bias.zero_()
    strength = (12 / (2 * len(rates)) * size**0.5) ** 0.5
    for head, (down, right) in enumerate(neighbours):
        angles = torch.cat([rates * down, rates * right])
        rows = slice(head * size, (head + 1) * size)
        bias[:width][rows][: size // 2] = strength
        bias[width : 2 * width][rows] = strength * torch.cat([angles.cos(), -angles.sin()])
        for row, channel in enumerate(slow):
            weight[2 * width + head * size + row, channel] += 1


# Data


class Pairs(IterableDataset):
    """Batches of pairs of frames with their dense labels. Batch `i` depends on the seed and on `i` alone."""

    def __init__(self, seed: int, first: int, steps: int, batch_size: int, photos: list[Path], easy: bool = True):
        self.seed, self.first, self.steps, self.batch_size = seed, first, steps, batch_size
        self.photos, self.easy, self.textures = photos, easy, None

    def prepared(self, count: int = TEXTURES) -> "Pairs":
        """With its textures made, which takes seconds: `__iter__` does it in the loader's worker."""
        self.textures = self.textures or make_textures(np.random.default_rng(self.seed), count, self.photos)
        return self

    def __iter__(self):
        self.prepared()
        info = torch.utils.data.get_worker_info()
        number, count = (info.id, info.num_workers) if info else (0, 1)
        for step in range(self.first + number, self.steps, count):
            yield self.batch(step)

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
        ease = min(1.0, step / (EASY * self.steps)) if self.easy else 1.0
        pairs = []
        while len(pairs) < self.batch_size:
            duration = float(np.exp(rng.uniform(np.log(1.5), np.log(8))))
            fastest = 0.12 + 0.7 * ease
            num_movers = int(rng.choice(4, p=[0.15, 0.35, 0.3, 0.2]))
            scene = sample_scene(rng, self.textures, size, duration, None, None, num_movers, fastest, ease)
            pairs += [self.pair(rng, scene) for _ in range(2)]
        return {name: torch.stack([pair[name] for pair in pairs[: self.batch_size]]) for name in pairs[0]}

    def pair(self, rng: np.random.Generator, scene: Scene) -> dict[str, torch.Tensor]:
        """Frames `(2, H, W, 3)` uint8 and labels `(rows, columns, ...)`, one for each patch, of its middle."""
        start = rng.uniform(0, scene.duration)
        gap = 0.0 if rng.random() < 0.08 else PAIR_SECONDS * rng.uniform(0.75, 1.25)
        clip = render(scene, np.array([start, start + gap]))
        rows, columns = scene.height // PATCH, scene.width // PATCH
        middles = [(np.arange(count) + 0.5) * PATCH for count in (columns, rows)]
        points = np.stack(np.meshgrid(*middles), -1).reshape(-1, 2)
        shown = clip.shown[0]
        flow, moves, growth = optical_flow(scene, shown, *clip.times, points)
        own = optical_flow(scene, shown, *clip.times, points, camera_stays=True).flow
        what = shown[points[:, 1].astype(int), points[:, 0].astype(int)].astype(int) - FIRST_MOVER
        colour, kind = np.zeros(len(points), np.int64), np.zeros(len(points), np.int64)
        for index, mover in enumerate(scene.movers):
            colour[what == index] = 1 + list(COLOURS).index(mover.cutout.colour)
            kind[what == index] = 1 + list(KINDS).index(mover.cutout.kind)
        if scene.look.grey or abs(scene.look.gain - 0.9) > 0.3:
            colour[colour > 0] = -100  # not to be told
        frames = clip.frames
        labels = {"flow": flow, "own": own, "growth": growth, "moves": moves, "colour": colour, "kind": kind}
        grids = {name: values.reshape(rows, columns, *values.shape[1:]) for name, values in labels.items()}
        return {"frames": torch.from_numpy(frames)} | {
            name: torch.as_tensor(grid, dtype=torch.int64 if grid.dtype == np.int64 else torch.float32)
            for name, grid in grids.items()
        }


def squash(motion: torch.Tensor, small: float = SMALL["flow"]) -> torch.Tensor:
    """To a scale on which small motions count as much as large ones; it is linear below `small`."""
    return motion.sign() * (motion.abs().clamp(max=200 * small) / small).log1p()


def to_patches(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames `(B, 2, H, W, 3)` uint8 as the processor gives them: patches `(n, 1176)` and grids `(B, 3)`."""
    count, _, height, width, _ = frames.shape
    rows, columns = height // PATCH, width // PATCH
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (MEAN, STD))
    pixels = ((frames / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    patches = pixels.view(count, 2, 3, rows // 2, 2, PATCH, columns // 2, 2, PATCH)
    patches = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(count * rows * columns, -1)
    return patches, torch.tensor([[1, rows, columns]]).repeat(count, 1)


def to_features(labels: torch.Tensor) -> torch.Tensor:
    """Labels `(B, rows, columns, ...)` in the order of the merged features: `(n, 4, ...)`."""
    count, rows, columns = labels.shape[:3]
    split = labels.view(count, rows // 2, 2, columns // 2, 2, -1).transpose(2, 3).flatten(3, 4)
    return split.reshape(-1, 4, split.shape[-1]).squeeze(-1)


# Training


class Reader(torch.nn.Module):
    """Linear heads on the merged features and, to shorten the way of the gradient, on the last block's patches."""

    def __init__(self, config: Qwen2_5_VLVisionConfig):
        super().__init__()
        self.total = sum(HEADS.values())
        self.merged = torch.nn.Linear(config.out_hidden_size, 4 * self.total)
        self.patches = torch.nn.Linear(config.hidden_size, self.total)

    def forward(self, output) -> list[dict[str, torch.Tensor]]:
        both = self.merged(output.pooler_output), self.patches(output.last_hidden_state)
        return [
            dict(zip(HEADS, scores.float().view(-1, 4, self.total).split(list(HEADS.values()), -1), strict=True))
            for scores in both
        ]


def losses(told: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    truth = {name: to_features(batch[name]) for name in HEADS}
    loss = 4 * F.smooth_l1_loss(told["flow"], squash(truth["flow"]), beta=0.3)
    growth = squash(truth["growth"], SMALL["growth"])
    loss = loss + 2 * F.smooth_l1_loss(told["growth"][..., 0], growth, beta=0.3)
    own = F.smooth_l1_loss(told["own"], squash(truth["own"]), beta=0.3, reduction="none").mean(-1)
    loss = loss + 2 * (own * (1 + RARE * truth["moves"])).mean()
    weight = torch.tensor(RARE)
    loss = loss + F.binary_cross_entropy_with_logits(told["moves"][..., 0], truth["moves"], pos_weight=weight)
    for name in ("colour", "kind"):
        scores, labels = told[name].flatten(0, 1), truth[name].flatten()
        class_weights = torch.full((scores.shape[-1],), RARE)
        class_weights[0] = 1.0
        loss = loss + F.cross_entropy(scores, labels, class_weights)
    return loss


@torch.no_grad()
def evaluate(tower, reader, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """R2 of the flow, of the own flow where something moves, and of the growth (all squashed); share of flows above
    half a pixel within 45 degrees, balanced accuracy of `moves`, and accuracy of colour and kind where something
    is."""
    tower.eval()
    told, truth = [], []
    for batch in batches:
        told.append(reader(tower(*to_patches(batch["frames"])))[0])
        truth.append({name: to_features(batch[name]) for name in HEADS})
    tower.train()
    told = {name: torch.cat([part[name] for part in told]) for name in HEADS}
    truth = {name: torch.cat([part[name] for part in truth]) for name in HEADS}
    found = {}
    for name, where in (("flow", slice(None)), ("own", truth["moves"] > 0.5), ("growth", slice(None))):
        target = squash(truth[name], SMALL[name])[where]
        found[f"{name}_r2"] = 1 - ((told[name].view_as(truth[name])[where] - target) ** 2).mean() / target.var()
    large = truth["flow"].abs().amax(-1) > 0.5
    near = F.cosine_similarity(told["flow"][large], squash(truth["flow"])[large], dim=-1) > 0.7071
    found["within_45"] = near.float().mean()
    moves = truth["moves"] > 0.5
    right = (told["moves"][..., 0] > 0) == moves
    found["moves"] = (right[moves].float().mean() + right[~moves].float().mean()) / 2
    for name in ("colour", "kind"):
        there = truth[name] > 0
        found[name] = (told[name].argmax(-1)[there] == truth[name][there]).float().mean()
    return {name: round(float(value), 3) for name, value in found.items()}


@torch.no_grad()
def standardise(tower, batches: list[dict[str, torch.Tensor]]) -> None:
    """Shift and scale the merger's last layer: features get mean 0 and, over all channels, deviation 1. A large common
    part would put every cosine near 1 and leave the loss on the latents nothing to teach."""
    tower.eval()
    features = torch.cat([tower(*to_patches(batch["frames"])).pooler_output for batch in batches])
    last, scale = tower.merger.mlp[-1], features.std(0).pow(2).mean().sqrt()
    last.bias.sub_(features.mean(0)).div_(scale)
    last.weight.div_(scale)


def main(
    out: Path,
    steps: int = 40000,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos; by default those of packages")] = None,
    workers: int = 1,
    bf16: Annotated[
        bool, typer.Option(help="Autocast: twice as fast on some processors, far slower on others")
    ] = False,
    evaluate_every: int = 1000,
) -> None:
    """Write OUT/tower.safetensors after STEPS batches."""
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))
    sources = folder_photos(photos) if photos else package_photos()
    config = vision_config()
    tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    start_with_waves(tower)
    reader = Reader(config)
    weights = [*tower.parameters(), *reader.parameters()]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.03},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True)
    work = {
        "command": "pretrain_motion_tower.py",
        **{"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "bf16": bf16},
        "photos_sha256": files_hash(sources),
        **versions("torch", "transformers", "numpy"),
    }
    with claim(out / WORK, work):
        done = 0
        if (out / "state.pt").exists():
            state = torch.load(out / "state.pt")
            done = state["step"]
            for name, module in (("tower", tower), ("reader", reader), ("optimizer", optimizer)):
                module.load_state_dict(state[name])
        held_out = Pairs(seed + 10**6, 0, 1, 8, sources, easy=False).prepared(100)
        unseen = [held_out.batch(i) for i in range(40)]
        pairs = Pairs(seed, done, steps, batch_size, sources)
        loader = DataLoader(pairs, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None)
        for batch in tqdm(loader, initial=done, total=steps, unit="step", mininterval=30):
            share = done / steps
            falling = 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - 0.4) / 0.6)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, share / 0.02 + 0.01) * (0.02 + 0.98 * falling)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                told = reader(tower(*to_patches(batch["frames"])))
            loss = sum(losses(part, batch) for part in told)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            done += 1
            if done % evaluate_every == 0 or done == steps:
                tqdm.write(f"step {done}: loss {loss.item():.3f}, {evaluate(tower, reader, unseen)}")
                state = {"step": done, "tower": tower.state_dict(), "reader": reader.state_dict()}
                torch.save(state | {"optimizer": optimizer.state_dict()}, out / "state.tmp")
                (out / "state.tmp").replace(out / "state.pt")
        standardise(tower, unseen)
        save_file(
            {name: tensor.contiguous() for name, tensor in tower.state_dict().items()}, out / "tower.safetensors"
        )
        config.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
