"""train/sft.py in several processes: it gives the gradients of one process, a killed run continues to the same bits,
and ZeRO-3 saves whole weights."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from launches import deepspeed, finish, log_history, start
from PIL import Image
from safetensors.torch import load_file

from fourdthinker_hf import FourDThinkerForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = (0, 1, 3, 0, 2, 1, 0, 2)  # mental images of each record; the texts also differ in length


@pytest.fixture(scope="module")
def records(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (84, 84, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    rows = [
        {
            "id": str(i),
            "video": str(clip),
            "question": "which way" + " now" * i,
            "options": ["left", "right"],
            "reasoning": "it moves " * (1 + 3 * i) + "<output_image> so " * num_images,
            "imagery": [f"{k}.png" for k in range(num_images)],
            "answer": ["left", "right"][i % 2],
        }
        for i, num_images in enumerate(NUM_IMAGES)
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tiny_folder, records, tmp_path):
    """`recipe(**settings) -> (path, output_dir)`."""

    def write(**settings):
        values = {
            "model_name_or_path": str(tiny_folder),
            "records": [str(records)],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "weight_decay": 0.0,
            "output_dir": str(tmp_path / "run"),
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return path, Path((values | settings)["output_dir"])

    return write


@pytest.mark.slow
@pytest.mark.parametrize("forget", [False, True])
def test_two_processes_give_the_gradients_of_one(recipe, tmp_path, forget):
    """One step of SGD with learning rate 1, which changes the weights by the gradient."""
    sgd = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 1}
    sgd["forget_video"] = forget
    whole, cut = (str(tmp_path / name) for name in ("whole", "cut"))
    path, _ = recipe(**sgd, per_device_train_batch_size=8, output_dir=whole)
    finish(start("train/sft.py", "--config", path, launch=("--cpu", "--num_processes", 1)))
    path, _ = recipe(**sgd, per_device_train_batch_size=4, output_dir=cut)
    launch = ("--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    finish(start("train/sft.py", "--config", path, launch=launch))
    one, two = (load_file(f"{folder}/model.safetensors") for folder in (whole, cut))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-6, rtol=0, msg=name)
    first, second = (log_history(Path(folder))[0] for folder in (whole, cut))
    for name in ("loss", "text_loss", "latent_loss", "latent_cosine", "mean_token_accuracy", "num_input_tokens_seen"):
        assert first[name] == pytest.approx(second[name], abs=1e-6), name


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_killed_run_continues_to_the_same_bits(recipe, tmp_path):
    """ZeRO-2, two processes with dataloader workers, killed in training; the newest checkpoint is half written."""
    settings = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "learning_rate": 1e-3,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    path, _ = recipe(**settings, output_dir=str(whole))
    finish(start("train/sft.py", "--config", path, launch=deepspeed("zero2")))

    path, _ = recipe(**settings, output_dir=str(killed))
    run = start("train/sft.py", "--config", path, launch=deepspeed("zero2"))
    while not list(killed.glob("checkpoint-*/trainer_state.json")):
        assert run.poll() is None, run.communicate()[0][-5000:]
        time.sleep(0.01)
    for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
        process.kill()  # SIGKILL
    run.communicate()
    assert not (killed / "model.safetensors").exists()
    (killed / "checkpoint-7").mkdir()
    (killed / "checkpoint-7" / "model.safetensors").write_bytes(b"half")
    (killed / "checkpoint-7" / "trainer_state.json").write_text('{"epoch": 1.0, "glo')

    output = finish(start("train/sft.py", "--config", path, launch=deepspeed("zero2")))
    assert "checkpoint-7 was not written to its end" in output
    files = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert files[0] == files[1]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (whole, killed)]
    assert configs[0] == configs[1] and len(configs[0]["latent_mean"]) == 192
    logs = [log_history(folder)[:-1] for folder in (whole, killed)]
    for row in logs[0] + logs[1]:
        del row["train_runtime"], row["train_tokens_per_second"]
    assert logs[0] == logs[1]

    again = subprocess.run(
        [sys.executable, "train/sft.py", "--config", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert again.returncode == 0 and "holds a finished run" in again.stdout
    assert (killed / "model.safetensors").read_bytes() == files[1]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_two_machines_with_sharded_weights(recipe, records, tiny_folder, tmp_path):
    """ZeRO-3 with two_nodes_zero3.yaml and two launches, one for each machine. In some batches only one process has no
    mental image, and questions are answered during training. The saved weights are whole and those of a run in one
    process."""
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "eval_records": [str(records)],
        "eval_questions": 3,
        "eval_max_new_tokens": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 2,
    }
    path, sharded = recipe(**settings, output_dir=str(tmp_path / "sharded"))
    hardware = (*deepspeed("two_nodes_zero3"), "--main_process_ip", "127.0.0.1", "--machine_rank")
    finish(*(start("train/sft.py", "--config", path, launch=(*hardware, rank)) for rank in (0, 1)))
    settings |= {"per_device_train_batch_size": 2}
    path, whole = recipe(**settings, output_dir=str(tmp_path / "whole"))
    finish(start("train/sft.py", "--config", path, launch=("--cpu", "--num_processes", 1)))

    names = [load_file(folder / "model.safetensors").keys() for folder in (tiny_folder, sharded, whole)]
    assert names[0] == names[1] == names[2]
    models = [FourDThinkerForConditionalGeneration.from_pretrained(folder) for folder in (sharded, whole)]
    for (name, a), (_, b) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=name)
    for first, second in zip(log_history(sharded), log_history(whole), strict=True):
        assert first.keys() == second.keys()
        for key in ("loss", "eval_loss", "eval_text_loss", "eval_latent_cosine", "eval_accuracy", "eval_samples"):
            if key in first:
                expected = first[key] if isinstance(first[key], str) else pytest.approx(first[key], abs=1e-3)
                assert second[key] == expected, key
