"""`fourdthinker memory`: its estimates against measured training steps, against arithmetic, and for the recipes."""

import gc
import json
import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sft import DIFTConfig, ModelConfig, ScriptArguments
from trl import TrlParser

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.training import DIFTTrainer
from fourdthinker_hf.training.lora import LORA_TARGETS
from fourdthinker_hf.training.memory_estimate import RowShape, TrainingSetup, estimate, read_config, read_recipe

RECIPES = Path("train/recipes")
ZERO2 = Path("train/accelerate/zero2.yaml")
HEIGHT, WIDTH = 140, 700  # pixels of a frame
ROW = RowShape(num_frames=16, frame_pixels=HEIGHT * WIDTH, num_targets=2, text_tokens=200, labelled_tokens=100)
BATCH_SIZE = 4
RUNS = {  # settings of DIFTConfig
    "full": {},
    "checkpointing": {"gradient_checkpointing": True},
    "LoRA": {},
}
# The config.json of Qwen2.5-VL-3B-Instruct on the Hub, without what the estimate does not read.
QWEN_3B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "window_size": 112,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}


def small_config() -> FourDThinkerConfig:
    """A network of 6 M parameters."""
    last = 151_936 // 8 - 1
    return FourDThinkerConfig(
        text_config={
            "vocab_size": last + 1,
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_heads": 8,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        video_token_id=last,
        image_token_id=last - 1,
        vision_start_token_id=last - 2,
        vision_end_token_id=last - 3,
        latent_token_id=last - 4,
        latent_start_id=last - 5,
        latent_end_id=last - 6,
        dtype="float32",
    )


def make_batch(config: FourDThinkerConfig) -> dict:
    """Random pixels and text of `BATCH_SIZE` rows of the shape `ROW`; two mental images begin each labelled part."""
    grid = torch.tensor([[ROW.num_frames // 2, HEIGHT // 14, WIDTH // 14]]).repeat(BATCH_SIZE, 1)
    target_grid = torch.tensor([[1, HEIGHT // 14, WIDTH // 14]]).repeat(BATCH_SIZE * ROW.num_targets, 1)
    video = torch.full((BATCH_SIZE, int(grid[0].prod()) // 4), config.video_token_id)
    start, end = (
        torch.full((BATCH_SIZE, 1), token) for token in (config.vision_start_token_id, config.vision_end_token_id)
    )
    text = torch.randint(0, 1000, (BATCH_SIZE, ROW.text_tokens - 2))
    input_ids = torch.cat([start, video, end, text], 1)
    block = [config.latent_start_id, *[config.latent_token_id] * config.latent_size, config.latent_end_id]
    images = torch.tensor(block * ROW.num_targets)
    first = input_ids.shape[1] - ROW.labelled_tokens
    input_ids[:, first : first + len(images)] = images
    labels = input_ids.masked_fill(input_ids == config.latent_token_id, -100)
    labels[:, :first] = -100
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "mm_token_type_ids": 2 * (input_ids == config.video_token_id).long(),
        "second_per_grid_ts": torch.ones(BATCH_SIZE),
        "video_grid_thw": grid,
        "pixel_values_videos": torch.rand(int(grid.prod(1).sum()), 3 * 2 * 14 * 14),
        "image_grid_thw_latent": target_grid,
        "pixel_values_latent": torch.rand(int(target_grid.prod(1).sum()), 3 * 2 * 14 * 14),
    }


def make_trainer(name: str, tiny_folder: str, folder: str) -> DIFTTrainer:
    model = FourDThinkerForConditionalGeneration(small_config())
    args = DIFTConfig(
        folder,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-6,
        use_cpu=True,
        **{"bf16": False, "gradient_checkpointing": False, **RUNS[name]},
    )
    trainer = DIFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"row": 0}]),
        data_collator=lambda rows: rows,
        processing_class=FourDThinkerProcessor.from_pretrained(tiny_folder),
        peft_config=LoraConfig(target_modules=LORA_TARGETS) if name == "LoRA" else None,
    )
    trainer.create_optimizer()
    if args.gradient_checkpointing:  # `train` would do it
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    return trainer


def resident_bytes(name: str) -> int:
    """An entry of /proc/self/status: VmRSS, the resident bytes now, or VmHWM, the most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_of_step(trainer: DIFTTrainer) -> int:
    """The most resident bytes during one step: forward, backward, clipping and AdamW."""
    model, batch = trainer.model, trainer._prepare_inputs(make_batch(small_config()))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    samples, num_items = trainer.get_batch_samples(iter([batch]), 1, batch["input_ids"].device)
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    trainer.training_step(model, samples[0], num_items)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    model.zero_grad()
    return resident_bytes("VmHWM")


def measure_peaks(tiny_folder: str, folder: str, queue) -> None:
    """For each of `RUNS` the peak of a second step, over what was resident before the trainer was made."""
    for number, name in enumerate(["full", *RUNS]):  # the first one loads libraries
        before = resident_bytes("VmRSS")
        trainer = make_trainer(name, tiny_folder, folder)
        peak_of_step(trainer)
        peak = peak_of_step(trainer)
        del trainer
        if number:
            queue.put(peak - before)


@pytest.mark.slow
def test_estimated_and_measured_memory_agree(tiny_folder, tmp_path, monkeypatch, figure):
    """Real steps of the trainer, in fp32 on the CPU; within 20%."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # glibc gives larger blocks back when they are freed
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure_peaks, args=(str(tiny_folder), str(tmp_path), queue))
    process.start()
    setups = {
        "full": TrainingSetup(BATCH_SIZE),
        "checkpointing": TrainingSetup(BATCH_SIZE, gradient_checkpointing=True),
        "LoRA": TrainingSetup(BATCH_SIZE, peft_config=LoraConfig(target_modules=LORA_TARGETS)),
    }
    estimated = {name: estimate(small_config(), setup, ROW)[-1][1] for name, setup in setups.items()}
    measured = dict(zip(RUNS, (queue.get(timeout=500) for _ in RUNS), strict=True))
    process.join()
    for name in RUNS:
        figure(f"memory, {name}: estimated {estimated[name] / 1e6:.0f} MB, measured {measured[name] / 1e6:.0f} MB")
    assert estimated["checkpointing"] < 0.8 * estimated["full"]
    for name in RUNS:
        assert estimated[name] == pytest.approx(measured[name], rel=0.2), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "config.json"
    path.write_text(json.dumps(QWEN_3B))
    return path


def rows_of(config, **setup) -> dict[str, int]:
    row = RowShape(4, 28 * 28 * 16, 1, 50, 20)
    return {name: size for name, size, _ in estimate(config, TrainingSetup(**setup), row)}


def test_zero_shares_what_its_paper_says(base):
    config = read_config(base)
    whole, trained = 3_754_622_976, 3_085_938_688  # Qwen2.5-VL-3B's, and without its tower
    zero2 = rows_of(config, bf16=True, zero_stage=2, num_gpus=8)
    assert zero2["weights"] == 2 * whole
    assert (zero2["gradients"], zero2["optimizer"]) == (2 * trained // 8, 12 * trained // 8)
    zero3 = rows_of(config, bf16=True, zero_stage=3, num_gpus=8)
    assert zero3["weights"] == 2 * whole // 8
    assert zero3["step"] == zero2["step"]
    assert zero2["total"] == sum(size for name, size in zero2.items() if name != "total")


def test_4drl_counts_the_cache_of_its_replies_and_the_larger_of_sampling_and_learning():
    config, row = small_config(), RowShape(4, 28 * 28 * 16, 0, 250, 200)

    def of_4drl(**setup):
        return {name: size for name, size, _ in estimate(config, TrainingSetup(4, num_generations=2, **setup), row)}

    one, four = of_4drl(), of_4drl(steps_per_generation=4, gradient_accumulation_steps=4)
    bytes_of_a_token = 4 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, fp32
    cache = bytes_of_a_token * (32 + 50 + 200 - 1)  # video, prompt and reply, of which the last token is not fed
    assert four["sampling"] - one["sampling"] > 12 * cache
    assert one["sampling"] < one["learning"] == one["total"] - one["weights"] - one["optimizer"]
    with_reference = of_4drl(reference=True)
    assert with_reference["total"] - one["total"] == with_reference["reference"] == one["weights"]
    adapters = of_4drl(peft_config=LoraConfig(target_modules=LORA_TARGETS))
    assert adapters["optimizer"] < one["optimizer"] / 10 and adapters["learning"] < one["learning"]


def test_adapters_of_bf16_weights_are_fp32():
    plain = rows_of(small_config(), bf16=True, bf16_weights=True)
    lora = LoraConfig(r=8, target_modules=["q_proj"], exclude_modules=".*visual.*", trainable_token_indices=None)
    adapted = rows_of(small_config(), bf16=True, bf16_weights=True, peft_config=lora)
    adapters = 4 * 8 * (128 + 128) + 3 * 128  # of four layers; and three rows of the embedding, for mental images
    assert adapted["optimizer"] == 2 * 4 * adapters
    assert adapted["weights"] - plain["weights"] == 4 * adapters


def test_precision_and_accumulation():
    config = small_config()
    single, double = rows_of(config), rows_of(config, bf16=True)
    assert double["weights"] == single["weights"] == 2 * double["weights cast"]
    pure = rows_of(config, bf16=True, bf16_weights=True)
    assert (2 * pure["weights"], 2 * pure["optimizer"]) == (single["weights"], single["optimizer"])
    assert rows_of(config, gradient_accumulation_steps=4)["step"] > single["step"]
    assert rows_of(config, num_gpus=2)["communication"] == single["optimizer"] // 2
    frozen, learning = single, rows_of(config, freeze_vision=False)
    assert learning["optimizer"] > frozen["optimizer"] and learning["step"] > frozen["step"]
    assert rows_of(config, feature_cache=True)["total"] <= frozen["total"]


def test_more_checkpointing_less_memory_and_more_rows_more():
    config, row = small_config(), RowShape(16, 28 * 28 * 60, 2, 200, 20)

    def peak(**setup):
        return dict((name, size) for name, size, _ in estimate(config, TrainingSetup(**setup), row))["step"]

    assert peak(gradient_checkpointing=True) < peak() < peak(batch_size=2) < 2.1 * peak()


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_recipes_parse_and_carry_the_published_settings(size):
    arguments = ["--config", str(RECIPES / size / "dift.yaml"), "--use_cpu", "true"]
    run, dift, model = TrlParser((ScriptArguments, DIFTConfig, ModelConfig)).parse_args_and_config(arguments)
    published = {
        "ce_weight": 0.1,
        "sim_weight": 1.0,
        "learning_rate": 1e-5,
        "num_train_epochs": 1,
        "warmup_steps": 10,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 1,
        "freeze_vision": True,
    }
    assert {name: getattr(dift, name) for name in published} == published
    assert run.records == ["data/published/dift_data.jsonl"]
    assert model.model_name_or_path == f"checkpoints/4dthinker-{size}-base"


def test_a_recipe_and_its_hardware_are_read(tmp_path):
    name, setup, longest_reply = read_recipe(RECIPES / "3b/dift.yaml", ZERO2)
    assert (name, longest_reply) == ("checkpoints/4dthinker-3b-base", None)
    expected = TrainingSetup(gradient_checkpointing=True, bf16=True, bf16_weights=True, num_gpus=8, zero_stage=2)
    assert asdict(setup) == asdict(expected)
    assert read_recipe(RECIPES / "3b/dift.yaml", ZERO2, gpus=4)[1].num_gpus == 4
    lora = tmp_path / "lora.yaml"
    lora.write_text((RECIPES / "3b/dift.yaml").read_text() + "use_peft: true\nlora_r: 8\noptim: adamw_torch\n")
    assert read_recipe(lora)[1].peft_config.r == 8
    for line, message in (("optim: adafactor", "adafactor"), ("packing: true", "packing")):
        lora.write_text((RECIPES / "3b/dift.yaml").read_text() + line + "\n")
        with pytest.raises(ValueError, match=message):
            read_recipe(lora)
    with pytest.raises(ValueError, match="no recipe"):
        read_recipe(ZERO2)
    name, setup, longest_reply = read_recipe(RECIPES / "3b/4drl.yaml", ZERO2)
    expected = {"batch_size": 8, "gradient_accumulation_steps": 16, "gradient_checkpointing": True, "bf16": True}
    expected |= {"bf16_weights": True, "num_gpus": 8, "zero_stage": 2}
    expected |= {"num_generations": 8, "steps_per_generation": 8, "reference": True}
    assert (name, longest_reply) == ("runs/dift_3b", 8192)
    assert asdict(setup) == asdict(TrainingSetup(**expected))
    assert os.listdir(tmp_path) == ["lora.yaml"]  # parsing makes no folders


def test_a_config_that_is_not_there_or_another_models(tmp_path):
    with pytest.raises(ValueError, match="--config"):
        read_config(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        read_config(tmp_path / "config.json")
    assert torch.get_default_dtype() == torch.float32
