"""Estimates the memory that a recipe needs on each GPU, before anything is rented: `fourdthinker memory RECIPE`.

The estimate adds up two parts:

- the memory that is always in use, by formula: weights, gradients and optimizer states, whole or sharded among GPUs as
  ZeRO does it (Rajbhandari et al. 2020, arXiv 1910.02054, section 3 and figure 1: P weights of which T are trained, in
  bf16, take 2P + 2T + 12T bytes; stage 2 divides the last two by the number of GPUs, stage 3 all three). Without
  DeepSpeed, torch's AdamW keeps two numbers for each weight in the weight's own dtype, and DDP copies the gradients;
- the memory that is in use only within a step, not by formula but by running the step itself, forward and backward, on
  tensors without data (torch's FakeTensorMode), and counting every storage while it is alive. So attention, gradient
  checkpointing, adapters and the head cost what they cost in the installed version of transformers, for a model of any
  size, within seconds, on any machine.

A step of 4DRL either samples replies or learns from them, so the larger of the two counts. For sampling, the vision
tower, the prompts and the decoding of the last token are run in the same way, beside a cache of full length.

All rows have the same length. Not counted: the CUDA context (about 0.5 GB), the libraries' workspaces, and the
allocator's fragmentation.
"""

import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, fields
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
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from trl import ModelConfig, TrlParser, get_peft_config
from trl.trainer.utils import disable_dropout_in_model

from ..auto_classes import FourDThinkerConfig
from .dift_config import DIFTConfig
from .grpo_config import FourDRLConfig
from .grpo_trainer import PACKED_ATTENTION
from .lora import LORA_TARGETS, latent_rows
from .trainer_mixin import unwrap_peft

# DeepSpeed's defaults (docs, "ZeRO Optimizations for FP16 Training"): numbers in one communication buffer, and weights
# that stage 3 gathers at a time.
REDUCE_BUCKET_SIZE = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000


@dataclass
class RowShape:
    """The size of one row: frames of its video and target frames, of `frame_pixels` each, and tokens of text, some of
    which have a label. The latents of target frames count as text. In 4DRL the labelled tokens are those of a reply,
    the others those of its prompt, and there are no target frames."""

    num_frames: int = 16
    frame_pixels: int = 256 * 28 * 28
    num_targets: int = 2
    text_tokens: int = 500
    labelled_tokens: int = 300

    def __post_init__(self):
        if not 0 <= self.labelled_tokens <= self.text_tokens:
            raise ValueError(
                f"{self.labelled_tokens} labelled tokens are more than the {self.text_tokens} tokens of text"
            )


@dataclass
class TrainingSetup:
    """The settings of a run that decide how much memory it needs."""

    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    freeze_vision: bool = True
    bf16: bool = False
    bf16_weights: bool = False  # the weights are loaded in bf16, not only computed with in bf16
    peft_config: PeftConfig | None = None
    num_gpus: int = 1
    zero_stage: int = 0  # 0 (no DeepSpeed), 2 or 3
    feature_cache: bool = False  # features are read from a cache, so the vision tower does not run
    num_generations: int = 0  # replies to a prompt in 4DRL; 0 is DIFT
    steps_per_generation: int = 1  # of 4DRL: so many batches of replies are sampled at a time
    reference: bool = False  # 4DRL has a reference model, beside the one that it trains


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, except those of `known` tensors: `current` and `peak`."""

    def __init__(self, known):
        super().__init__()
        self.current = self.peak = 0
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
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self.remove, id(storage), storage.nbytes())

    def remove(self, key, size):
        self.storages.remove(key)
        self.current -= size


def trace_step(model, row: RowShape, setup: TrainingSetup, keep_grads: bool) -> dict[str, int]:
    """Bytes of one step of DIFT beyond weights and optimizer: `kept` for the backward pass, `head` in addition for the
    logits and their loss, and the `peak` of all. In 4DRL it is a step that learns from replies. `model` has no data;
    call this under its FakeTensorMode."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not keep_grads:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(_drop_grad)
    base = unwrap_peft(model)
    hidden_size, visual = base.config.text_config.hidden_size, base.model.visual
    with MemoryTracker([*model.parameters(), *model.buffers()]) as memory:
        for _ in range(min(setup.gradient_accumulation_steps, 2)):  # the second one adds to gradients that exist
            before = memory.current
            if setup.num_generations:
                kept, head = _learn_from_replies(base, row, setup, memory)
                continue
            frames = _num_patch_frames(base.config.vision_config, row)
            batch = []  # the dataloader's tensors stay alive until the step ends
            if setup.feature_cache:
                tokens = setup.batch_size * frames * _frame_patches(visual.config, row) // visual.spatial_merge_unit
                features = torch.zeros(tokens, hidden_size, dtype=visual.dtype)
            else:
                batch = [_pixels(visual.config, row, setup.batch_size * n) for n in (row.num_targets, frames)]
                with torch.no_grad():
                    _run_tower(visual, row, batch[0])
                with torch.no_grad() if setup.freeze_vision else nullcontext():
                    features = _run_tower(visual, row, batch[1])
            size = (setup.batch_size, len(features) // setup.batch_size + row.text_tokens)
            embeds = base.get_input_embeddings()(torch.zeros(size, dtype=torch.long))
            embeds = torch.cat([features.unflatten(0, (setup.batch_size, -1)), embeds[:, -row.text_tokens :]], 1)
            positions = torch.zeros((3, *size), dtype=torch.long)
            states = base.model.language_model(
                inputs_embeds=embeds, position_ids=positions, use_cache=False
            ).last_hidden_state
            kept = memory.current - before
            logits = base.lm_head(states[:, -row.labelled_tokens :].reshape(-1, hidden_size))
            loss = F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long))
            head = memory.current - before - kept
            loss.backward()
            del logits, loss, states, embeds, features, batch
    return {"kept": kept, "head": head, "peak": memory.peak}


class _TiledHead(torch.autograd.Function):
    """What [`TiledLogProbs`] allocates for `states` `(n, hidden)` and `weight` `(vocabulary, hidden)`, apart from its
    tiles, which are small: a number for each token, and gradients that are summed in fp32."""

    @staticmethod
    def forward(ctx, states, weight):
        ctx.save_for_backward(states, weight)
        return torch.zeros(len(states))

    @staticmethod
    def backward(ctx, grad):
        grads = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        ]
        pairs = zip(ctx.saved_tensors, grads, strict=True)
        return tuple(None if total is None else total.to(tensor.dtype) for tensor, total in pairs)


def _learn_from_replies(base, row: RowShape, setup: TrainingSetup, memory: MemoryTracker) -> tuple[int, int]:
    """Runs a step on replies that are packed behind their prompts, as 4DRL scores them. Returns bytes `kept` for the
    backward pass, and those of the `head`."""
    before = memory.current
    prompt = _num_video_tokens(base.config, row) + row.text_tokens - row.labelled_tokens
    replies = [
        min(setup.num_generations, setup.batch_size - i) for i in range(0, setup.batch_size, setup.num_generations)
    ]
    segments = [[prompt - 1, *[row.labelled_tokens] * number] for number in replies]
    size = (1, sum(map(sum, segments)))
    embeds = base.get_input_embeddings()(torch.zeros(size, dtype=torch.long))
    states = base.model.language_model(
        inputs_embeds=embeds,
        position_ids=torch.zeros((3, *size), dtype=torch.long),
        use_cache=False,
        segments=segments,
    ).last_hidden_state
    kept = memory.current - before
    scored = states[0, -setup.batch_size * row.labelled_tokens :].clone()
    values = _TiledHead.apply(scored, base.lm_head.weight)
    head = memory.current - before - kept
    values.sum().backward()
    return kept, head


@torch.no_grad()
def trace_rollout(model, row: RowShape, setup: TrainingSetup) -> dict[str, int]:
    """Bytes that sampling replies takes beyond the weights: the `cache` of all replies in full length, and the `peak`
    of all. `model` has no data; call this under its FakeTensorMode."""
    base = unwrap_peft(model)
    text, visual = base.config.text_config, base.model.visual
    replies = setup.batch_size * setup.steps_per_generation
    prompts = -(-replies // setup.num_generations)
    width = text.hidden_size // text.num_attention_heads
    with MemoryTracker([*model.parameters(), *model.buffers()]) as memory:
        frames = _num_patch_frames(visual.config, row)
        features = _run_tower(visual, row, _pixels(visual.config, row, prompts * frames)).unflatten(0, (prompts, -1))
        size = (prompts, features.shape[1] + row.text_tokens - row.labelled_tokens)
        embeds = base.get_input_embeddings()(torch.zeros(size, dtype=torch.long))
        mask = torch.ones(prompts, 1, size[1], size[1], dtype=torch.bool)  # prompts are padded on the left
        positions = torch.zeros((3, *size), dtype=torch.long)
        states = base.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask={"full_attention": mask}, use_cache=True
        )
        del states, embeds, mask, positions

        before = memory.current
        cache, length = DynamicCache(), size[1] + row.labelled_tokens
        for layer in range(text.num_hidden_layers):
            cache.update(
                *torch.zeros(2, replies, text.num_key_value_heads, length - 1, width, dtype=base.dtype), layer
            )
        held = memory.current - before
        latents = torch.zeros(replies, row.labelled_tokens, text.hidden_size, dtype=base.dtype)
        states = base.model.language_model(
            inputs_embeds=torch.zeros(replies, 1, text.hidden_size, dtype=base.dtype),
            position_ids=torch.zeros(3, replies, 1, dtype=torch.long),
            attention_mask={"full_attention": torch.ones(replies, 1, 1, length, dtype=torch.bool)},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = base.lm_head(states[:, -1]).float()
        torch.multinomial((logits / setup.batch_size).softmax(-1), 1)
        del states, logits
        latents = latents.clone().masked_fill(torch.zeros(1, 1, 1, dtype=torch.bool), 0)  # stacked, then only of pads
        del latents, cache, features
    return {"cache": held, "peak": memory.peak}


def _num_patch_frames(vision, row: RowShape) -> int:
    """How many temporal patches the video has."""
    return -(-row.num_frames // vision.temporal_patch_size)


def _num_video_tokens(config, row: RowShape) -> int:
    vision = config.vision_config
    return _num_patch_frames(vision, row) * _frame_patches(vision, row) // vision.spatial_merge_size**2


def _replace_tensors(model) -> None:
    """Puts fake tensors in place of those on the meta device, on which attention would take another path."""
    replaced = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in replaced:
                    replaced[id(tensor)] = fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if tensors is module._parameters:
                        replaced[id(tensor)] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                tensors[name] = replaced[id(tensor)]


def _drop_grad(parameter):
    parameter.grad = None


def _frame_patches(config, row: RowShape) -> int:
    """Patches of one frame, a multiple of those that the merger joins."""
    merged = config.spatial_merge_size**2
    return row.frame_pixels // config.patch_size**2 // merged * merged


def _pixels(config, row: RowShape, num_frames: int) -> torch.Tensor:
    """The processor's patches `(num_frames * patches, volume)` of frames (of a video: pairs of frames), in fp32."""
    volume = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return torch.zeros(num_frames * _frame_patches(config, row), volume, dtype=torch.float32)


def _run_tower(visual, row: RowShape, pixels: torch.Tensor) -> torch.Tensor:
    """Features `(n, hidden)` of [`_pixels`]. Attention is always within whole frames: within the windows of a frame it
    takes as much memory, in many more calls."""
    config = visual.config
    frame, total = _frame_patches(config, row), len(pixels)
    hidden = visual.patch_embed(pixels.to(visual.dtype))
    angles = torch.zeros(total, config.hidden_size // config.num_heads)
    for block in visual.blocks:
        starts = np.arange(0, total, frame)  # not a fake tensor: its values are read
        hidden = block(hidden, cu_seqlens=np.append(starts, total), position_embeddings=(angles.cos(), angles.sin()))
    return visual.merger(hidden)


def estimate(config: FourDThinkerConfig, setup: TrainingSetup, row: RowShape) -> list[tuple[str, int, str]]:
    """Name, bytes and remark of each item of one GPU's memory; the last one is the total."""
    bf16_weights = setup.bf16 and (setup.zero_stage > 0 or setup.bf16_weights)
    with torch.device("meta"):
        compute_dtype = torch.bfloat16 if setup.bf16 else torch.float32
        model = AutoModelForImageTextToText.from_config(config, dtype=compute_dtype)
        model.model.visual.requires_grad_(not setup.freeze_vision)
        if setup.peft_config:
            if setup.peft_config.trainable_token_indices is None and not setup.num_generations:  # as DIFTTrainer does
                setup.peft_config.trainable_token_indices = (
                    latent_rows(config, setup.peft_config.modules_to_save) or None
                )
            model = get_peft_model(model, setup.peft_config)
    with FakeTensorMode():
        _replace_tensors(model)
        model.train()
        if setup.gradient_checkpointing:
            with warnings.catch_warnings():  # transformers 5.24 renamed it
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        rollout = None
        if setup.num_generations:
            disable_dropout_in_model(model)
            rollout = trace_rollout(model, row, setup)
            unwrap_peft(model).set_attn_implementation({"text_config": PACKED_ATTENTION})
        size = 2 if bf16_weights else 4
        weights = list(model.parameters())
        trained = [parameter for parameter in weights if parameter.requires_grad]
        num_weights, num_trained = (sum(parameter.numel() for parameter in part) for part in (weights, trained))
        weight_bytes, trained_bytes = size * num_weights, size * num_trained
        if setup.peft_config and bf16_weights and not setup.zero_stage:  # PEFT keeps adapters in fp32
            weight_bytes, trained_bytes = (
                sum(parameter.numel() * parameter.element_size() for parameter in part) for part in (weights, trained)
            )
        keep_grads = not setup.zero_stage and (bf16_weights or not setup.bf16)
        step = trace_step(model, row, setup, keep_grads)

    dtype = "bf16" if bf16_weights else "fp32"
    num_shards = setup.num_gpus if setup.zero_stage else 1
    sharded = f", sharded over {setup.num_gpus} GPUs" if num_shards > 1 else ""
    if setup.zero_stage == 3:
        items = [("weights", size * num_weights // num_shards, f"{num_weights / 1e9:.2f} B, {dtype}{sharded}")]
        items.append(("gathered weights", size * min(num_weights, MAX_LIVE_PARAMETERS), "at most 1 B at a time"))
    else:
        items = [("weights", weight_bytes, f"{num_weights / 1e9:.2f} B, {dtype}")]
    if setup.reference:
        items.append(("reference", size * num_weights // (num_shards if setup.zero_stage == 3 else 1), items[0][2]))
    if setup.bf16 and not bf16_weights:
        items.append(("weights cast", 2 * num_weights, "autocast's copies in bf16"))
    if not keep_grads:
        remark = f"of {num_trained / 1e9:.2f} B trained weights, {dtype}{sharded}"
        items.append(("gradients", size * num_trained // num_shards, remark))
    if setup.zero_stage:
        items.append(("optimizer", 12 * num_trained // num_shards, f"AdamW and weights in fp32{sharded}"))
        items.append(("communication", size * min(num_trained, REDUCE_BUCKET_SIZE), "one bucket of gradients"))
    else:
        remark = f"AdamW, {'fp32' if trained_bytes == 4 * num_trained else dtype}"
        items.append(("optimizer", 2 * trained_bytes, remark))
        if setup.num_gpus > 1:
            items.append(("communication", trained_bytes, "DDP's buckets"))
    with_grads = f" with gradients ({trained_bytes / 1e9:.2f} GB)" if keep_grads else ""
    remark = f"peak{with_grads}; kept for backward {step['kept'] / 1e9:.2f}, head {step['head'] / 1e9:.2f}"
    always = sum(size for _, size, _ in items)
    if rollout is None:
        return [*items, ("step", step["peak"], remark), ("total", always + step["peak"], "")]
    sampling = rollout["peak"]
    if setup.zero_stage == 3:  # all weights are gathered to sample
        sampling += size * max(num_weights - MAX_LIVE_PARAMETERS, 0)
    if keep_grads and setup.gradient_accumulation_steps > setup.steps_per_generation:
        sampling += trained_bytes  # the step's earlier batches have left them
    items.append(("sampling", sampling, f"peak; cache {rollout['cache'] / 1e9:.2f}"))
    items.append(("learning", step["peak"], remark))
    return [*items, ("total", always + max(sampling, step["peak"]), "with the larger of sampling and learning")]


def read_recipe(recipe: str | PathLike, accelerate: str | PathLike | None = None, gpus: int | None = None):
    """The model that a recipe names, its [`TrainingSetup`] on the hardware of an accelerate file, and how many tokens
    a reply of 4DRL has at most (`None` for DIFT).

    `gpus` overrides the file's number of processes. Raises `ValueError` for a file that is not a recipe, and for an
    optimizer other than AdamW.
    """
    hardware = {} if accelerate is None else _read_yaml(accelerate)
    settings = _read_yaml(recipe)
    if "model_name_or_path" not in settings:
        raise ValueError(f"{recipe} has no model_name_or_path, so it is no recipe")
    known, of_4drl = ({option.name for option in fields(config)} for config in (DIFTConfig, FourDRLConfig))
    is_4drl = bool(settings.keys() & of_4drl - known)
    arguments = ["--config", str(recipe), "--use_cpu", "true"]  # without it bf16 is refused if there is no GPU
    with warnings.catch_warnings():  # transformers 5.24 renamed gradient_checkpointing
        warnings.simplefilter("ignore", FutureWarning)
        training_args, model_args, _ = TrlParser(
            (FourDRLConfig if is_4drl else DIFTConfig, ModelConfig)
        ).parse_args_and_config(arguments, return_remaining_strings=True, fail_with_unknown_args=False)
    if not (optimizer := str(training_args.optim.value)).startswith("adamw_torch"):
        raise ValueError(f"{recipe}: the memory of optim={optimizer} is not known, only that of adamw_torch")
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS
    zero_stage = (hardware.get("deepspeed_config") or {}).get("zero_stage", 0)
    if zero_stage not in (0, 2, 3):
        raise ValueError(f"{accelerate}: the memory of zero_stage {zero_stage} is not known, only that of 2 and 3")
    rollout = {}
    if is_4drl:
        rollout = {
            "num_generations": training_args.num_generations,
            "steps_per_generation": training_args.steps_per_generation,
            "reference": training_args.beta != 0 and not model_args.use_peft,
        }
    setup = TrainingSetup(
        batch_size=training_args.per_device_train_batch_size,
        gradient_accumulation_steps=training_args.gradient_accumulation_steps,
        gradient_checkpointing=training_args.gradient_checkpointing,
        freeze_vision=is_4drl or training_args.freeze_vision,
        bf16=training_args.bf16,
        bf16_weights=model_args.dtype == "bfloat16",
        peft_config=get_peft_config(model_args),
        num_gpus=gpus or hardware.get("num_processes", 1),
        zero_stage=zero_stage,
        feature_cache=not is_4drl and training_args.feature_cache is not None,
        **rollout,
    )
    return model_args.model_name_or_path, setup, training_args.max_completion_length if is_4drl else None


def _read_yaml(path: str | PathLike) -> dict:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings, one NAME: VALUE a line")
    return content


def read_config(source: str | PathLike) -> FourDThinkerConfig:
    """The config of a 4DThinker or Qwen2.5-VL model, from a folder, a config.json or a Hub id. Raises `ValueError` if
    there is none."""
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)  # also that of a base
    except OSError as error:
        raise ValueError(
            f"{source}: no config can be read; give a config.json with --config, that of the base model will do"
        ) from error
    if raw.get("model_type") not in (FourDThinkerConfig.model_type, "qwen2_5_vl"):
        raise ValueError(f"{source}: model_type {raw.get('model_type')!r} is neither 4DThinker's nor Qwen2.5-VL's")
    return FourDThinkerConfig.from_dict({**raw, "model_type": FourDThinkerConfig.model_type})


def describe(
    recipe,
    num_frames: int = RowShape.num_frames,
    frame_pixels: int = RowShape.frame_pixels,
    num_targets: int = RowShape.num_targets,
    text_tokens: int = RowShape.text_tokens,
    labelled_tokens: int | None = None,
    accelerate=None,
    gpus: int | None = None,
    config=None,
) -> str:
    """A table for people, in GB of 1e9 bytes, of the run of [`read_recipe`] on rows of that shape. `config` replaces
    its model's config. In 4DRL `text_tokens` are those of a prompt, `labelled_tokens` those of a reply, by default the
    most that it may have."""
    model, setup, longest_reply = read_recipe(recipe, accelerate, gpus)
    if longest_reply is not None:
        labelled_tokens = labelled_tokens or longest_reply
        row = RowShape(num_frames, frame_pixels, 0, text_tokens + labelled_tokens, labelled_tokens)
        rest = f"replies of {labelled_tokens:,} tokens to"
    else:
        row = RowShape(
            num_frames,
            frame_pixels,
            num_targets,
            text_tokens,
            labelled_tokens or min(RowShape.labelled_tokens, text_tokens),
        )
        rest = "row(s) of"
    model_config = read_config(config or model)
    items = estimate(model_config, setup, row)
    zero = f"ZeRO-{setup.zero_stage}" if setup.zero_stage else "no DeepSpeed"
    head = (
        f"{model} on each of {setup.num_gpus} GPU(s), {zero}, gradient checkpointing "
        f"{'on' if setup.gradient_checkpointing else 'off'}; {setup.batch_size} {rest} "
        f"{_num_video_tokens(model_config, row):,} video and {text_tokens:,} text tokens"
        f"{'' if longest_reply else f', {num_targets} target frames'}"
    )
    return "\n".join([head, *(f"{name:18} {size / 1e9:8.2f} GB  {remark}".rstrip() for name, size, remark in items)])
