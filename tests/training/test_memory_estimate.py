"""What `fourdthinker memory` tells: against steps that were run, against arithmetic, and for the recipes that ship."""

import json
import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from sft import DIFTConfig, ModelConfig, RunArguments, TrlParser

from bench.speed.convert import flat_config
from bench.speed.dift_step import Shape as BatchShape
from bench.speed.dift_step import lora, make_config, make_trainer, predicted, status, step
from fourdthinker_hf.training.memory_estimate import Setup, Shape, estimate, read_config, read_recipe

RECIPES = Path("train/recipes")
ZERO2 = Path("train/accelerate/zero2.yaml")
SHAPE = BatchShape(batch=4)
GIVE_BACK = "MALLOC_MMAP_THRESHOLD_"  # glibc's: larger blocks are given back when they are freed


def run_steps(runs: list[dict], folder: str, queue) -> None:
    """Peak bytes of a second step of each run, over what was there before it."""
    config = make_config(quick=True)
    for number, settings in enumerate([runs[0], *runs]):  # the first one loads libraries
        before = status("VmRSS")
        trainer = make_trainer(config, "dift", folder, **dict(settings))
        step(trainer, config, SHAPE, "dift", False)
        _, peak, _ = step(trainer, config, SHAPE, "dift", False)
        del trainer
        if number:
            queue.put(peak - before)


@pytest.mark.slow
def test_told_and_measured_agree(tmp_path, monkeypatch, figure):
    """Real steps of the trainer, in fp32 on the CPU; within 20%."""
    runs = {"full": {}, "checkpointing": {"gradient_checkpointing": True}, "LoRA": {"use_lora": True}}
    monkeypatch.setenv(GIVE_BACK, "65536")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run_steps, args=(list(runs.values()), str(tmp_path), queue))
    process.start()
    config = make_config(quick=True)
    told = {
        name: predicted(config, SHAPE, checkpointing=name == "checkpointing", peft=lora() if name == "LoRA" else None)
        for name in runs
    }
    measured = dict(zip(runs, (queue.get(timeout=500) for _ in runs), strict=True))
    process.join()
    for name in runs:
        figure(f"memory, {name}: told {told[name] / 1e6:.0f} MB, measured {measured[name] / 1e6:.0f} MB")
    assert told["checkpointing"] < 0.8 * told["full"]
    for name in runs:
        assert told[name] == pytest.approx(measured[name], rel=0.2), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A config.json of Qwen2.5-VL-3B's shape, as the Hub has it."""
    path = tmp_path_factory.mktemp("base") / "config.json"
    path.write_text(json.dumps(flat_config("3b", published=False)))
    return path


def rows_of(config, **setup) -> dict[str, int]:
    return {name: size for name, size, _ in estimate(config, Setup(**setup), Shape(4, 28 * 28 * 16, 1, 50, 20))}


def test_zero_shares_what_its_paper_says(base):
    config = read_config(base)
    whole, trained = 3_754_622_976, 3_085_938_688  # Qwen2.5-VL-3B's, and without its tower
    zero2 = rows_of(config, bf16=True, zero=2, gpus=8)
    assert zero2["weights"] == 2 * whole
    assert (zero2["gradients"], zero2["optimizer"]) == (2 * trained // 8, 12 * trained // 8)
    zero3 = rows_of(config, bf16=True, zero=3, gpus=8)
    assert zero3["weights"] == 2 * whole // 8
    assert zero3["step"] == zero2["step"]
    assert zero2["total"] == sum(size for name, size in zero2.items() if name != "total")


def test_precision_and_accumulation():
    config = make_config(quick=True)
    single, double = rows_of(config), rows_of(config, bf16=True)
    assert double["weights"] == single["weights"] == 2 * double["weights cast"]
    pure = rows_of(config, bf16=True, bf16_weights=True)
    assert (2 * pure["weights"], 2 * pure["optimizer"]) == (single["weights"], single["optimizer"])
    assert rows_of(config, accumulation=4)["step"] > single["step"]
    assert rows_of(config, gpus=2)["communication"] == single["optimizer"] // 2
    frozen, learning = single, rows_of(config, freeze_vision=False)
    assert learning["optimizer"] > frozen["optimizer"] and learning["step"] > frozen["step"]
    assert rows_of(config, cached=True)["total"] <= frozen["total"]


def test_more_checkpointing_less_memory_and_more_rows_more():
    config, row = make_config(quick=True), Shape(16, 28 * 28 * 60, 2, 200, 20)

    def peak(**setup):
        return dict((name, size) for name, size, _ in estimate(config, Setup(**setup), row))["step"]

    assert peak(checkpointing=True) < peak() < peak(batch_size=2) < 2.1 * peak()


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_recipes_parse_and_carry_the_published_settings(size):
    arguments = ["--config", str(RECIPES / f"dift_{size}.yaml"), "--use_cpu", "true"]
    run, dift, model = TrlParser((RunArguments, DIFTConfig, ModelConfig)).parse_args_and_config(arguments)
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
    assert (run.records, model.model_name_or_path) == (["data/dift/train.jsonl"], f"checkpoints/4dthinker-{size}-base")


def test_a_recipe_and_its_hardware_are_read(tmp_path):
    name, setup = read_recipe(RECIPES / "3b/dift.yaml", ZERO2)
    assert name == "checkpoints/4dthinker-3b-base"
    assert asdict(setup) == asdict(Setup(checkpointing=True, bf16=True, gpus=8, zero=2))
    assert read_recipe(RECIPES / "3b/dift.yaml", ZERO2, gpus=4)[1].gpus == 4
    lora = tmp_path / "lora.yaml"
    lora.write_text((RECIPES / "3b/dift.yaml").read_text() + "use_peft: true\nlora_r: 8\noptim: adamw_torch\n")
    assert read_recipe(lora)[1].peft.r == 8
    for line, message in (("optim: adafactor", "adafactor"), ("packing: true", "packing")):
        lora.write_text((RECIPES / "3b/dift.yaml").read_text() + line + "\n")
        with pytest.raises(ValueError, match=message):
            read_recipe(lora)
    with pytest.raises(ValueError, match="no recipe"):
        read_recipe(ZERO2)
    assert os.listdir(tmp_path) == ["lora.yaml"]  # parsing makes no folders


def test_a_config_that_is_not_there_or_another_models(tmp_path):
    with pytest.raises(ValueError, match="--config"):
        read_config(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        read_config(tmp_path / "config.json")
    assert torch.get_default_dtype() == torch.float32
