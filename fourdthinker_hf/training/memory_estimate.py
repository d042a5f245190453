"""What a recipe needs on each GPU, told before anything is rented: `fourdthinker memory RECIPE`.

Two parts, added up:

- what lies there all the time, by formula: weights, gradients and optimizer states, whole or shared among GPUs as
  ZeRO does it (Rajbhandari et al. 2020, arXiv 1910.02054, section 3 and figure 1: of P weights of which T are
  trained, in bf16, 2P + 2T + 12T bytes; stage 2 divides the last two by the number of GPUs, stage 3 all three).
  Without DeepSpeed, torch's AdamW keeps two numbers a weight in the weight's own dtype, and DDP copies the gradients;
- what comes and goes within a step, not by formula but by running the step itself, forward and backward, on tensors
  without data (torch's FakeTensorMode) and counting every storage while it is alive. So attention, checkpointing,
  adapters and the head cost what the installed transformers makes them cost, at any size, in seconds, on any machine.

Rows are of equal length, as in a batch of one. Not counted: the CUDA context (about 0.5 GB), the libraries'
workspaces, what the allocator loses between blocks.
"""

import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText
from trl import ModelConfig, TrlParser, get_peft_config

from ..configuration_fourdthinker import FourDThinkerConfig
from .dift_config import DIFTConfig
from .lora import LORA_TARGETS, latent_rows

# DeepSpeed's defaults (docs, "ZeRO Optimizations for FP16 Training"): elements of one communication buffer, and of the
# weights that stage 3 holds whole at a time.
REDUCE_BUCKET = 500_000_000
LIVE_PARAMETERS = 1_000_000_000


@dataclass
class Shape:
    """What one row holds: frames of a video and target frames of `pixels` each, `text` tokens, `spoken` of them with a
    label. A target frame's latents are among the text."""

    frames: int = 16
    pixels: int = 256 * 28 * 28
    images: int = 2
    text: int = 500
    spoken: int = 300

    def __post_init__(self):
        if not 0 <= self.spoken <= self.text:
            raise ValueError(f"{self.spoken} spoken tokens are not among {self.text} tokens of text")


@dataclass
class Setup:
    """What of a run decides its memory. `bf16_weights`: they are loaded so, and not only computed with; `zero`: 0, 2
    or 3; `cached`: features are read, the tower does not run."""

    batch_size: int = 1
    accumulation: int = 1
    checkpointing: bool = False
    freeze_vision: bool = True
    bf16: bool = False
    bf16_weights: bool = False
    peft: PeftConfig | None = None
    gpus: int = 1
    zero: int = 0
    cached: bool = False


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, but for those of `known` tensors; `peak` is the most so far."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {id(tensor.untyped_storage()) for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage):
        if id(storage) not in self.storages:
            self.storages.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, id(storage), storage.nbytes())

    def drop(self, key, size):
        self.storages.remove(key)
        self.now -= size


def trace_step(model, shape: Shape, setup: Setup, keep_grads: bool) -> dict[str, int]:
    """Bytes of one step of DIFT beyond weights and optimizer: `kept` for the backward pass, `head` on top of it for
    the logits and their loss, `peak` in all. `model` has no data; call under its FakeTensorMode."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not keep_grads:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(_drop_grad)
    base = model.get_base_model() if setup.peft else model
    text, visual = base.config.text_config, base.model.visual
    with Alive([*model.parameters(), *model.buffers()]) as alive:
        for _ in range(min(setup.accumulation, 2)):  # in the second the gradients of the first are there
            before = alive.now
            frames = -(-shape.frames // base.config.vision_config.temporal_patch_size)
            batch = []  # what the loader gave stays until the step ends
            if setup.cached:
                tokens = setup.batch_size * frames * _frame_patches(visual.config, shape) // visual.spatial_merge_unit
                seen = torch.zeros(tokens, text.hidden_size, dtype=visual.dtype)
            else:
                batch = [_pixels(visual.config, shape, setup.batch_size * n) for n in (shape.images, frames)]
                with torch.no_grad():
                    _run_tower(visual, shape, batch[0])
                with torch.no_grad() if setup.freeze_vision else nullcontext():
                    seen = _run_tower(visual, shape, batch[1])
            size = (setup.batch_size, len(seen) // setup.batch_size + shape.text)
            embeds = base.get_input_embeddings()(torch.zeros(size, dtype=torch.long))
            embeds = torch.cat([seen.unflatten(0, (setup.batch_size, -1)), embeds[:, -shape.text :]], 1)
            positions = torch.zeros((3, *size), dtype=torch.long)
            states = base.model.language_model(
                inputs_embeds=embeds, position_ids=positions, use_cache=False
            ).last_hidden_state
            kept = alive.now - before
            logits = base.lm_head(states[:, -shape.spoken :].reshape(-1, text.hidden_size))
            loss = F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long))
            head = alive.now - before - kept
            loss.backward()
            del logits, loss, states, embeds, seen, batch
    return {"kept": kept, "head": head, "peak": alive.peak}


def _replace_tensors(model) -> None:
    """Fake tensors in place of those on the meta device, on which attention would take another path."""
    made = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if tensors is module._parameters:
                        made[id(tensor)] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                tensors[name] = made[id(tensor)]


def _drop_grad(parameter):
    parameter.grad = None


def _frame_patches(config, shape: Shape) -> int:
    merge = config.spatial_merge_size**2
    return shape.pixels // config.patch_size**2 // merge * merge


def _pixels(config, shape: Shape, num_frames: int) -> torch.Tensor:
    """What the processor makes of frames (of a video: pairs of frames), in fp32."""
    volume = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return torch.zeros(num_frames * _frame_patches(config, shape), volume, dtype=torch.float32)


def _run_tower(visual, shape: Shape, pixels: torch.Tensor) -> torch.Tensor:
    """Features `(n, hidden)` of [`_pixels`], without the reordering by windows."""
    config = visual.config
    frame = _frame_patches(config, shape)
    num_frames = len(pixels) // frame
    hidden = visual.patch_embed(pixels.to(visual.dtype))
    angles = torch.zeros(num_frames * frame, config.hidden_size // config.num_heads)
    window = (config.window_size // config.patch_size) ** 2
    for number, block in enumerate(visual.blocks):
        length = frame if number in config.fullatt_block_indexes else min(window, frame)
        ends = np.arange(0, num_frames * frame, length)  # of a fake tensor the lengths could not be read
        hidden = block(
            hidden, cu_seqlens=np.append(ends, num_frames * frame), position_embeddings=(angles.cos(), angles.sin())
        )
    return visual.merger(hidden)


def estimate(config: FourDThinkerConfig, setup: Setup, shape: Shape) -> list[tuple[str, int, str]]:
    """Rows of name, bytes and remark for one GPU; the last is the total."""
    bf16_weights = setup.bf16 and (setup.zero > 0 or setup.bf16_weights)
    with torch.device("meta"):
        computed = torch.bfloat16 if setup.bf16 else torch.float32
        model = AutoModelForImageTextToText.from_config(config, dtype=computed)
        model.model.visual.requires_grad_(not setup.freeze_vision)
        if setup.peft:
            if setup.peft.trainable_token_indices is None:  # as DIFTTrainer does
                setup.peft.trainable_token_indices = latent_rows(config)
            model = get_peft_model(model, setup.peft)
    with FakeTensorMode():
        _replace_tensors(model)
        model.train()
        if setup.checkpointing:
            with warnings.catch_warnings():  # transformers 5.24 renamed it
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        whole = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        keep_grads = not setup.zero and (bf16_weights or not setup.bf16)
        step = trace_step(model, shape, setup, keep_grads)

    size = 2 if bf16_weights else 4
    dtype = "bf16" if bf16_weights else "fp32"
    shared = setup.gpus if setup.zero else 1
    among = f", shared by {setup.gpus}" if shared > 1 else ""
    if setup.zero == 3:
        rows = [("weights", size * whole // shared, f"{whole / 1e9:.2f} B, {dtype}{among}")]
        rows.append(("weights held whole", size * min(whole, LIVE_PARAMETERS), "at most 1 B at a time"))
    else:
        rows = [("weights", size * whole, f"{whole / 1e9:.2f} B, {dtype}")]
    if setup.bf16 and not bf16_weights:
        rows.append(("weights cast", 2 * whole, "autocast's copies in bf16"))
    if not keep_grads:
        rows.append(("gradients", size * trained // shared, f"of {trained / 1e9:.2f} B trained, {dtype}{among}"))
    if setup.zero:
        rows.append(("optimizer", 12 * trained // shared, f"AdamW and weights in fp32{among}"))
        rows.append(("communication", size * min(trained, REDUCE_BUCKET), "one bucket of gradients"))
    else:
        rows.append(("optimizer", 2 * size * trained, f"AdamW, {dtype}"))
        if setup.gpus > 1:
            rows.append(("communication", size * trained, "DDP's buckets"))
    with_grads = f", gradients ({size * trained / 1e9:.2f} GB) included" if keep_grads else ""
    rows.append(
        (
            "step",
            step["peak"],
            f"peak{with_grads}; kept for backward {step['kept'] / 1e9:.2f}, head {step['head'] / 1e9:.2f}",
        )
    )
    return [*rows, ("total", sum(row[1] for row in rows), "")]


def read_recipe(recipe: str | PathLike, accelerate: str | PathLike | None = None, gpus: int | None = None):
    """The model that a recipe of train/sft.py names, and its [`Setup`] on the hardware of an accelerate file.

    `gpus` overrides the file's number of processes. `ValueError` for what is no recipe, and for an optimizer other
    than AdamW.
    """
    hardware = {} if accelerate is None else _read_yaml(accelerate)
    if "model_name_or_path" not in _read_yaml(recipe):
        raise ValueError(f"{recipe}: names no model_name_or_path, so it is no recipe of train/sft.py")
    arguments = ["--config", str(recipe), "--use_cpu", "true"]  # else bf16 is refused where there is no GPU
    with warnings.catch_warnings():  # transformers 5.24 renamed gradient_checkpointing
        warnings.simplefilter("ignore", FutureWarning)
        dift, model, _ = TrlParser((DIFTConfig, ModelConfig)).parse_args_and_config(
            arguments, return_remaining_strings=True, fail_with_unknown_args=False
        )
    if not (optimizer := str(dift.optim.value)).startswith("adamw_torch"):
        raise ValueError(f"{recipe}: optim={optimizer}, but only torch's AdamW is reckoned with")
    if model.use_peft and model.lora_target_modules is None:
        model.lora_target_modules = LORA_TARGETS
    zero = (hardware.get("deepspeed_config") or {}).get("zero_stage", 0)
    if zero not in (0, 2, 3):
        raise ValueError(f"{accelerate}: zero_stage {zero}, but only 2 and 3 are reckoned with")
    setup = Setup(
        batch_size=dift.per_device_train_batch_size,
        accumulation=dift.gradient_accumulation_steps,
        checkpointing=dift.gradient_checkpointing,
        freeze_vision=dift.freeze_vision,
        bf16=dift.bf16,
        bf16_weights=model.dtype == "bfloat16",
        peft=get_peft_config(model),
        gpus=gpus or hardware.get("num_processes", 1),
        zero=zero,
        cached=dift.feature_cache is not None,
    )
    return model.model_name_or_path, setup


def _read_yaml(path: str | PathLike) -> dict:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no settings, one a line")
    return content


def read_config(source: str | PathLike) -> FourDThinkerConfig:
    """The config of a 4DThinker or a Qwen2.5-VL base: folder, config.json or Hub id. `ValueError` if there is none."""
    try:
        raw, _ = FourDThinkerConfig.get_config_dict(source)
    except OSError as error:
        raise ValueError(
            f"{source}: no config can be read; give a config.json, of the base too, with --config"
        ) from error
    if raw.get("model_type") not in (FourDThinkerConfig.model_type, "qwen2_5_vl"):
        raise ValueError(f"{source}: model_type {raw.get('model_type')!r} is neither 4DThinker's nor Qwen2.5-VL's")
    return FourDThinkerConfig.from_dict({**raw, "model_type": FourDThinkerConfig.model_type})


def describe(recipe, shape: Shape, accelerate=None, gpus: int | None = None, config=None) -> str:
    """A table for people, in GB of 1e9 bytes, of [`read_recipe`]'s run; `config` stands in for its model's."""
    model, setup = read_recipe(recipe, accelerate, gpus)
    loaded = read_config(config or model)
    rows = estimate(loaded, setup, shape)
    patch = loaded.vision_config.temporal_patch_size
    tokens = -(-shape.frames // patch) * _frame_patches(loaded.vision_config, shape)
    tokens //= loaded.vision_config.spatial_merge_size**2
    kind = f"ZeRO-{setup.zero}" if setup.zero else "no DeepSpeed"
    head = (
        f"{model} on each of {setup.gpus} GPU(s), {kind}, gradient checkpointing "
        f"{'on' if setup.checkpointing else 'off'}; {setup.batch_size} row(s) of {tokens:,} video and "
        f"{shape.text:,} text tokens, {shape.images} target frames"
    )
    return "\n".join([head, *(f"{name:18} {size / 1e9:8.2f} GB  {remark}".rstrip() for name, size, remark in rows)])
