"""DIFT: exact labels, the loss against its formula, which weights are trained, the metrics, what is saved, and which
options are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sft
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel
from trl import ModelConfig

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data import records
from fourdthinker_hf.data.records import RecordError, write_records
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer, record_dataset
from fourdthinker_hf.training.latent_metrics import NUM_NEGATIVES, LatentMetrics
from fourdthinker_hf.training.run import last_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rows(clip, tmp_path):
    target = tmp_path / "target.png"
    Image.new("RGB", (84, 84), "red").save(target)
    base = {"video": str(clip), "question": "which way", "options": ["left", "right"], "answer": "left"}
    none = {"frames": None, "timestamps": None}
    return [
        {**base, **none, "reasoning": "it <output_image> moves", "imagery": [str(target)]},
        {**base, **none, "reasoning": "<output_image> then <output_image>", "imagery": [str(target)] * 2},
        {**base, **none, "reasoning": None, "imagery": []},
    ]


@pytest.fixture
def record_file(rows, tmp_path):
    """`record_file(*lines) -> path`: a JSONL file of the lines, then the rows."""

    def write(*texts: str) -> str:
        path = tmp_path / "records.jsonl"
        write_records(path, [records.Record(id=str(i), **row) for i, row in enumerate(rows)])
        path.write_text("".join(text + "\n" for text in texts) + path.read_text())
        return str(path)

    return write


def make_trainer(tiny_folder, processor, rows, out, eval_rows=None, peft_config=None, model=None, **kwargs):
    model = model or FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    settings = {"per_device_train_batch_size": 3, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    args = DIFTConfig(
        str(out),
        **{
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "disable_tqdm": True,
            **settings,
            **kwargs,
        },
    )
    as_dataset = lambda data: Dataset.from_list(data) if isinstance(data, list) else data  # noqa: E731
    return DIFTTrainer(
        model=model,
        args=args,
        train_dataset=as_dataset(rows),
        processing_class=processor,
        eval_dataset=as_dataset(eval_rows),
        peft_config=peft_config,
        data_collator=DIFTCollator(processor, forget_video=args.forget_video),
    )


# The batch


def test_labels_are_the_tokens_of_the_assistant_without_the_pads(processor, rows):
    batch = DIFTCollator(processor)(rows)
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert said == [
        "\n<think>it <|latent_start|><|latent_end|> moves</think><answer>left</answer><|im_end|>\n",
        "\n<think><|latent_start|><|latent_end|> then <|latent_start|><|latent_end|></think>"
        "<answer>left</answer><|im_end|>\n",
        "\n<answer>left</answer><|im_end|>\n",
    ]
    is_pad = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|latent_pad|>")
    assert is_pad.sum(1).tolist() == [4, 8, 0]
    assert (batch["labels"][is_pad] == -100).all()
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert batch["image_grid_thw_latent"].shape == (3, 3)
    assert batch["attention_mask"][:, 0].tolist() == [1, 1, 1]  # padded on the right


def test_rows_with_a_video_with_pictures_and_with_text_alone_give_what_each_gives_alone(model, processor, rows):
    """A row of one picture and one of five of another size stand beside the rows with a video."""
    pictures = [Image.new("RGB", (84, 56), color) for color in ("red", "blue", "green", "red", "white")]
    text = {"question": "what is up", "options": None, "answer": "down", "reasoning": None, "imagery": []}
    mixed = [text, rows[1], {**rows[0], "video": None, "frames": pictures[:1]}, rows[2]]
    mixed.append({**rows[1], "video": None, "frames": pictures})
    collator = DIFTCollator(processor)
    batch, alone = collator(mixed), [collator([row]) for row in mixed]
    assert batch["video_grid_thw"].tolist() == [[4, 6, 6], [1, 4, 6], [4, 6, 6], [3, 4, 6]]
    assert "pixel_values_videos" not in alone[0]
    for name in ("pixel_values_videos", "second_per_grid_ts", "pixel_values_latent", "image_grid_thw_latent"):
        assert torch.equal(batch[name], torch.cat([single[name] for single in alone if name in single]))
    for number, single in enumerate(alone):
        mask = batch["attention_mask"][number].bool()
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][number][mask], single[name][0])
    names = ("labels", "num_skipped")
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name not in names}).logits
        for number, single in enumerate(alone):
            expected = model(**{name: value for name, value in single.items() if name not in names}).logits[0]
            torch.testing.assert_close(logits[number, : len(expected)], expected, atol=1e-4, rtol=1e-4)


def test_imagery_and_options_can_be_left_out(processor, rows):
    batch = DIFTCollator(processor, imagery=False, options=False)(rows)
    text = processor.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text.startswith("user\nwhich way\nassistant\n<think>it moves</think>")
    assert "pixel_values_latent" not in batch
    batch = DIFTCollator(processor, reasoning=False, forget_video=True)(rows)
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert said == ["\n<answer>left</answer><|im_end|>\n"] * 3 and "pixel_values_latent" not in batch


def test_text_after_the_first_images_is_learnt_without_the_video(processor, rows):
    rows[1]["reasoning"] = "now <output_image><output_image> it moves"
    usual, batch = DIFTCollator(processor)(rows), DIFTCollator(processor, forget_video=True)(rows)
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    block, without_video = "<|latent_start|><|latent_end|>", batch["without_video"]
    assert said == [
        f"\n<think>it {block} moves",
        f"\n<think>now {block * 2} it",
        "\n<answer>left</answer><|im_end|>\n",  # no mental image: all of it is learnt with the video
    ]
    assert [processor.tokenizer.decode(row[row != -100]) for row in without_video["labels"]] == [
        " moves</think><answer>left</answer><|im_end|>\n",
        " it moves</think><answer>left</answer><|im_end|>\n",
    ]
    assert usual.keys() == batch.keys() - {"without_video"}
    assert all(torch.equal(usual[name], batch[name]) for name in usual if name != "labels")
    vision = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|video_pad|>", "<|vision_end|>"])
    for row in (0, 1):  # the same conversation except for the video
        ids = usual["input_ids"][row, usual["attention_mask"][row].bool()]
        kept = ids[~torch.isin(ids, torch.tensor(vision))]
        assert len(kept) < len(ids)
        assert torch.equal(kept, without_video["input_ids"][row, without_video["attention_mask"][row].bool()])
    nothing = DIFTCollator(processor, forget_video=True)(rows[2:])["without_video"]
    assert nothing["labels"].shape[0] == 1 and (nothing["labels"] == -100).all()


def test_without_the_video_the_predicted_latents_are_fed_with_their_gradient(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, ce_weight=0.5, forget_video=True)
    batch, model = DIFTCollator(processor, forget_video=True)(rows), trainer.model
    seen = {name: batch[name] for name in batch if name not in ("num_skipped", "without_video", "labels")}
    first, again = model(**seen), batch["without_video"]
    is_pad = seen["input_ids"] == model.config.latent_token_id
    predicted = first.last_hidden_state[:, :-1][is_pad[:, 1:]]
    latents = model.model.place_latents(again["input_ids"], predicted)
    second = model(input_ids=again["input_ids"], attention_mask=again["attention_mask"], latent_embeds=latents)
    text_losses = [
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
        for logits, labels in ((first.logits, batch["labels"]), (second.logits, again["labels"]))
    ]
    count = sum(int((labels[:, 1:] != -100).sum()) for labels in (batch["labels"], again["labels"]))
    sim = 1 - F.cosine_similarity(predicted, first.latent_targets, dim=-1)
    expected = 0.5 * torch.cat(text_losses).sum() / count + sim.mean()
    samples, num_items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert num_items == count and trainer._num_latents == 12
    loss = trainer.compute_loss(model, samples[0], num_items_in_batch=num_items)
    torch.testing.assert_close(loss, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert model.config.forget_video


def test_the_processor_runs_once_a_batch_and_each_frame_is_decoded_once(processor, rows, record_file, monkeypatch):
    calls = []

    def counted(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(name) or real(*args, **kwargs))

    counted(FourDThinkerProcessor, "__call__")
    counted(FourDThinkerProcessor, "open_video")
    counted(records, "open_image")
    collator = DIFTCollator(processor)
    monkeypatch.setattr("fourdthinker_hf.training.collator.open_image", records.open_image)
    dataset = record_dataset([record_file()], collator)
    collator(dataset.__getitems__([0, 1, 2]))
    assert sorted(calls) == ["__call__"] + ["open_image"] * 3 + ["open_video"] * 3


def test_frames_as_arrays_and_pictures_need_no_av(tiny_folder):
    program = f"""
import sys
sys.modules["av"] = None
import numpy as np
from PIL import Image
from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.training import DIFTCollator
red = Image.new("RGB", (84, 84), "red")
row = {{"question": "q", "answer": "a", "reasoning": "<output_image>", "timestamps": [0.0, 0.5]}}
rows = [row | {{"frames": [red, red], "imagery": [red]}},
        row | {{"frames": np.zeros((2, 84, 84, 3), np.uint8), "imagery": [np.zeros((84, 84, 3), np.uint8)]}}]
batch = DIFTCollator(FourDThinkerProcessor.from_pretrained({str(tiny_folder)!r}))(rows)
print(batch["video_grid_thw"].tolist(), batch["second_per_grid_ts"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[[1, 6, 6], [1, 6, 6]] [1.0, 1.0]\n", done.stderr


# Records are read when they are needed


def test_a_record_is_read_when_it_is_needed(processor, record_file):
    dataset = record_dataset([record_file("{", "")], DIFTCollator(processor))  # line 2 is empty
    assert len(dataset) == 4 and dataset[1]["question"] == "which way" and dataset[3]["imagery"] == []
    assert dataset[1]["clip"][0].shape == (8, 112, 112, 3) and dataset[1]["targets"][0].size == (84, 84)
    with pytest.raises(RecordError, match=r"records\.jsonl, line 1: Expecting"):
        dataset[0]


def test_rows_of_the_published_set_have_frames_without_times(processor, tmp_path):
    for name in ("0", "1", "2", "target"):
        Image.new("RGB", (84, 56), "red").save(tmp_path / f"{name}.png")
    row = {
        "id": 7,
        "text_input": "q",
        "image_input": ["0.png", "1.png", "2.png"],
        "image_output": ["target.png"],
        "text_output": "<think>so <output_image></think><answer>B</answer>",
    }
    (tmp_path / "published.jsonl").write_text(json.dumps(row))
    collator = DIFTCollator(processor)
    batch = collator([record_dataset([tmp_path / "published.jsonl"], collator)[0]])
    assert batch["video_grid_thw"].tolist() == [[2, 4, 6]] and batch["second_per_grid_ts"].tolist() == [1.0]
    assert batch["image_grid_thw_latent"].tolist() == [[1, 4, 6]]


def broken(kind: str, tmp_path, clip) -> dict:
    row = {"id": "x", "question": "q", "answer": "a", "video": str(clip)}
    if kind == "video":
        (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:1500])
        return row | {"video": "cut.mp4"}
    Image.new("RGB", (28, 28)).save(tmp_path / "small.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "target.png").read_bytes()[:60])
    name = {"picture": "bad.png", "small target": "small.png"}[kind]
    return row | {"reasoning": "<output_image>", "imagery": [name]}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("video", "truncated or damaged"), ("picture", "truncated"), ("small target", "1 features but .* needs 4")],
)
def test_a_file_that_cannot_be_decoded_stops_the_run_with_file_and_line(
    tiny_folder, processor, record_file, tmp_path, clip, kind, reason
):
    path = record_file(json.dumps(broken(kind, tmp_path, clip)))
    dataset = record_dataset([path], DIFTCollator(processor))
    trainer = make_trainer(
        tiny_folder,
        processor,
        dataset.select([1, 2, 3, 0]),
        tmp_path / "run",
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        max_steps=4,
        dataloader_num_workers=1,
    )
    with pytest.raises(RecordError, match=rf"records\.jsonl, line 1: .*{reason}"):
        trainer.train()
    assert trainer.state.global_step > 0


def test_bad_records_can_be_skipped_and_are_counted(tiny_folder, processor, record_file, tmp_path, clip, caplog):
    path = record_file("{", json.dumps(broken("video", tmp_path, clip)))
    dataset = record_dataset([path], DIFTCollator(processor), skip_bad=True)
    assert dataset[0]["id"] == dataset[1]["id"] == dataset[2]["id"] == "0"  # the next good record takes their place
    assert [dataset[i]["num_skipped"] for i in range(5)] == [2, 1, 0, 0, 0]
    assert "line 1: Expecting" in caplog.text and "line 2: " in caplog.text
    settings = {"per_device_train_batch_size": 5, "max_steps": 1}
    trainer = make_trainer(tiny_folder, processor, dataset, tmp_path / "run", **settings)
    trainer.train()
    assert trainer.state.log_history[0]["skipped_records"] == 3
    lines = Path(path).read_text().splitlines()[:1]
    Path(path).write_text(lines[0])
    with pytest.raises(RecordError, match="none of the 1 records can be used"):
        record_dataset([path], DIFTCollator(processor), skip_bad=True)[0]


# The loss


def test_loss_is_the_weighted_sum_of_both_means(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, ce_weight=0.1, sim_weight=2.0)
    batch = DIFTCollator(processor)(rows)
    model = trainer.model
    with torch.no_grad():
        output = model(**{name: value for name, value in batch.items() if name != "num_skipped"})
        is_pad = batch["input_ids"] == model.config.latent_token_id
        predicted = output.last_hidden_state[:, :-1][is_pad[:, 1:]]
        sim = (1 - F.cosine_similarity(predicted, output.latent_targets, dim=-1)).mean()
    samples, num_items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = trainer.compute_loss(model, samples[0], num_items_in_batch=num_items)
    torch.testing.assert_close(loss, 0.1 * output.loss + 2.0 * sim)


def test_all_weights_but_the_frozen_tower_are_trained(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".visual." in name), name


def test_one_forward_a_step_and_only_labelled_positions_reach_the_head(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, max_steps=1)
    model, seen = trainer.model, []
    for name, module in (("base", model.model), ("tower", model.model.visual), ("head", model.lm_head)):
        module.register_forward_hook(lambda _, args, out, name=name: seen.append((name, out)))
    trainer.train()
    labels = DIFTCollator(processor)(rows)["labels"]
    assert [name for name, _ in seen] == ["tower", "tower", "base", "head"]  # target frames, then the videos
    assert seen[-1][1].shape == (int((labels != -100).sum()), model.config.text_config.vocab_size)


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_neither_micro_batches_nor_checkpointing_change_loss_and_gradients(
    tiny_folder, processor, rows, tmp_path, settings, forget
):
    """One step of SGD at rate 1, so weights change by the gradient: unequal text, 1, 2 and 0 target frames."""
    sgd = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0}
    runs = []
    for number, kwargs in enumerate(({}, settings)):
        trainer = make_trainer(
            tiny_folder, processor, rows, tmp_path / str(number), forget_video=forget, **sgd, **kwargs
        )
        trainer.train()
        runs.append((trainer.state.log_history[0], dict(trainer.model.named_parameters())))
    (log, whole), (other_log, cut) = runs
    for name in ("loss", "text_loss", "latent_loss", "latent_norm", "mean_token_accuracy"):
        assert log[name] == pytest.approx(other_log[name], abs=1e-6, rel=1e-6), name
    assert log["loss"] == pytest.approx(0.1 * log["text_loss"] + log["latent_loss"], abs=1e-6)
    for name, parameter in whole.items():
        torch.testing.assert_close(parameter, cut[name], atol=1e-6, rtol=0, msg=name)


def test_bf16_is_close(tiny_folder, processor, rows, tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(tiny_folder, processor, rows, tmp_path / str(bf16), bf16=bf16, max_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1] == pytest.approx(losses[0], abs=0.02)


# Metrics


def test_the_metrics_tell_a_seeing_model_from_a_blind_one():
    """Targets share a large mean. A seeing model predicts the targets with noise, a blind one the mean with noise."""
    torch.manual_seed(0)
    mean = 10 * torch.randn(2, 32)  # a vector for each of two slots
    targets = mean + torch.randn(400, 2, 32)
    seeing, blind = targets + 0.5 * torch.randn_like(targets), mean + torch.randn_like(targets)
    means = []
    for predicted in (seeing, blind):
        metrics, totals = LatentMetrics(latent_size=2), {}
        for rows, true_targets in zip(predicted.split(8), targets.split(8), strict=True):
            for name, values in metrics(rows.flatten(0, 1), true_targets.flatten(0, 1), training=True).items():
                totals.setdefault(name, []).append(values)
        assert len(totals["latent_rank"]) == (400 - NUM_NEGATIVES) // 8  # from the first batch that has 64 before it
        means.append({name: torch.cat(values).mean().item() for name, values in totals.items()})
    sees, guesses = means
    assert min(sees["latent_cosine"], guesses["latent_cosine"]) > 0.98
    assert sees["latent_centred_cosine"] > 0.8 and sees["latent_rank"] == 1 and sees["latent_top1"] == 1
    assert abs(guesses["latent_centred_cosine"]) < 0.05 and abs(guesses["latent_rank"] - 33) < 3
    assert guesses["latent_top1"] < 0.06
    assert sees["latent_norm"] == pytest.approx(seeing.norm(dim=-1).mean().item(), rel=1e-5)
    assert sees["target_norm"] == pytest.approx(targets.norm(dim=-1).mean().item(), rel=1e-5)


def test_a_rank_counts_the_negatives_that_are_nearer():
    metrics = LatentMetrics(latent_size=1)

    def on_circle(steps):  # a circle around (5, 5) of 64 steps
        return torch.stack([torch.cos(steps * 2 * torch.pi / 64), torch.sin(steps * 2 * torch.pi / 64)], -1) + 5

    negatives = on_circle(torch.arange(64.0))
    assert "latent_rank" not in metrics(negatives, negatives, training=False)
    truth, predicted = on_circle(torch.tensor([0.7])), on_circle(torch.tensor([3.2]))
    found = metrics(predicted, truth, training=False)
    assert found["latent_rank"].item() == 6  # negatives 1 to 5 are nearer than 2.5 steps
    assert found["latent_norm"].item() == pytest.approx(predicted.norm().item())
    assert metrics.mean is None  # it is updated only in training


def test_evaluation_does_not_depend_on_its_batches(tiny_folder, processor, rows, tmp_path):
    results = []
    for size in (1, 3):
        trainer = make_trainer(
            tiny_folder,
            processor,
            rows,
            tmp_path,
            rows,
            per_device_eval_batch_size=size,
            eval_questions=2,
            eval_max_new_tokens=3,
        )
        results.append(trainer.evaluate())
    for name in ("eval_loss", "eval_text_loss", "eval_latent_loss", "eval_latent_cosine", "eval_target_norm"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-5), name
    expected = 0.1 * results[0]["eval_text_loss"] + results[0]["eval_latent_loss"]
    assert results[0]["eval_loss"] == pytest.approx(expected)
    assert results[0]["eval_accuracy"] == 0 and results[0]["eval_samples"] == results[1]["eval_samples"]
    assert results[0]["eval_samples"].count("| which way |") == 2


def test_it_learns_to_answer_keeps_the_best_and_reports(tiny_folder, processor, rows, tmp_path, monkeypatch):
    """A row is learnt by heart: the accuracy of freely generated answers rises, the first checkpoint with the best
    accuracy is kept, and TensorBoard's and Trackio's files hold the numbers and the replies."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    out = tmp_path / "run"
    trainer = make_trainer(
        tiny_folder,
        processor,
        rows[2:],
        out,
        rows[2:],
        max_steps=60,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="steps",
        save_steps=20,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        eval_questions=1,
        eval_max_new_tokens=12,
        ce_weight=1.0,
        report_to=["tensorboard", "trackio"],
        learning_rate=3e-3,
    )
    trainer.train()
    accuracies = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    assert accuracies[-1] == 1 and trainer.state.best_metric == 1
    best = 20 * (accuracies.index(1) + 1)
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    best_model = FourDThinkerForConditionalGeneration.from_pretrained(trainer.state.best_model_checkpoint)
    for a, b in zip(best_model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert trainer.evaluate()["eval_samples"].splitlines()[2] == (
        "| which way | <answer>left</answer> | left | right |"
    )
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert events.Scalars("eval/accuracy")[-1].value == 1
    assert {"train/text_loss", "train/train_tokens_per_second", "eval/text_loss"} <= set(events.Tags()["scalars"])
    (text,) = events.Tensors("eval/samples/text_summary")[-1].tensor_proto.string_val
    assert b"<answer>left</answer>" in text
    assert b"eval/accuracy" in next(Path(os.environ["TRACKIO_DIR"]).rglob("*.db")).read_bytes()


# What is saved


def test_a_saved_run_loads_through_the_auto_classes(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert {"model.safetensors", "processor_config.json", "modeling_fourdthinker.py", "video_fourdthinker.py"} <= names
    assert not list(tmp_path.rglob("README.md"))  # `fourdthinker card` writes it
    loaded = FourDThinkerForConditionalGeneration.from_pretrained(tmp_path / "final")
    assert len(loaded.config.latent_mean) == 192
    for a, b in zip(loaded.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_rows_of_the_latent_tokens_and_merges(tiny_folder, processor, rows, tmp_path, tied):
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, tie_word_embeddings=tied)
    if not tied:
        with torch.no_grad():
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 0.01)
    model.save_pretrained(tmp_path / "base")
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path / "run", peft_config=lora, model=model)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    base = FourDThinkerForConditionalGeneration.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModel.from_pretrained(tmp_path / "merged")
    moved = {name for name, p in loaded.state_dict().items() if not torch.equal(p, before[name])}
    embedding, layers = "model.language_model.embed_tokens.weight", ("q", "k", "v", "o")
    assert moved == {embedding, "lm_head.weight"} | {
        f"model.language_model.layers.{i}.self_attn.{name}_proj.weight" for i in (0, 1) for name in layers
    }
    changed = (loaded.lm_head.weight != before["lm_head.weight"]).any(1).nonzero().flatten().tolist()
    config = loaded.config
    assert changed == sorted([config.latent_token_id, config.latent_start_id, config.latent_end_id])
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    batch = DIFTCollator(processor)(rows)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_skipped")}
    trainer.model.eval(), loaded.eval()
    torch.testing.assert_close(loaded(**inputs).logits, trainer.model(**inputs).logits, atol=1e-4, rtol=0)


def test_a_lora_run_leaves_a_whole_model_and_is_not_run_twice(tiny_folder, record_file, tmp_path, capsys):
    def run():
        sft.main(
            sft.ScriptArguments(records=[record_file()], merge_adapter=True),
            DIFTConfig(str(tmp_path / "run"), max_steps=2, use_cpu=True, bf16=False, report_to="none"),
            ModelConfig(str(tiny_folder), use_peft=True),
        )

    run()
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "modeling_fourdthinker.py"} <= files.keys()
    assert "adapter_config.json" not in files and (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    loaded = AutoModel.from_pretrained(tmp_path / "run")
    start = AutoModel.from_pretrained(tiny_folder)
    moved = {name for name, p in loaded.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert "model.language_model.embed_tokens.weight" in moved and len(moved) == 1 + 2 * 7  # layers x linear ones
    assert len(loaded.config.latent_mean) == 192
    run()
    assert "holds a finished run, nothing is trained" in capsys.readouterr().out
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}


def test_lora_may_train_the_whole_embedding_and_its_tied_head(tiny_folder, record_file, tmp_path):
    def run(modules, out):
        sft.main(
            sft.ScriptArguments(records=[record_file()], merge_adapter=True),
            DIFTConfig(str(out), max_steps=1, learning_rate=1e-2, use_cpu=True, bf16=False, report_to="none"),
            ModelConfig(str(tiny_folder), use_peft=True, lora_modules_to_save=modules),
        )

    run(["embed_tokens"], tmp_path / "run")
    loaded, start = AutoModel.from_pretrained(tmp_path / "run"), AutoModel.from_pretrained(tiny_folder)
    moved = (loaded.lm_head.weight != start.lm_head.weight).any(1)
    assert moved.sum() > 300 and loaded.lm_head.weight is loaded.get_input_embeddings().weight
    with pytest.raises(ValueError, match="this head shares the embedding's weights; embed_tokens trains both"):
        run(["lm_head"], tmp_path / "head")
    with pytest.raises(ValueError, match="LoRA would train .*visual.merger.* but the vision tower is frozen"):
        run(["merger"], tmp_path / "merger")


def test_a_resumed_run_restores_its_metrics(tiny_folder, processor, rows, tmp_path):
    logs = []
    for resumed in (False, True):
        out = tmp_path / str(resumed)
        settings = {"max_steps": 40, "save_strategy": "steps", "save_steps": 30, "logging_steps": 5}
        trainer = make_trainer(tiny_folder, processor, rows, out, **settings)
        if resumed:
            trainer.train(resume_from_checkpoint=last_checkpoint(str(tmp_path / "False")))
        else:
            trainer.train()
            (out / "checkpoint-40" / "trainer_state.json").unlink()
        logs.append([row for row in trainer.state.log_history if row.get("step", 0) > 30 and "loss" in row])
        mean = trainer.latent_metrics.mean
    times = ("train_runtime", "train_tokens_per_second")
    assert [{k: v for k, v in row.items() if k not in times} for row in logs[0]] == [
        {k: v for k, v in row.items() if k not in times} for row in logs[1]
    ]
    assert "latent_rank" in logs[1][0] and mean is not None


def test_a_run_that_was_stopped_after_its_last_step_does_no_other(tiny_folder, processor, rows, tmp_path):
    """The last step is in the middle of an epoch of three."""
    settings = {"max_steps": 2, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    first = make_trainer(tiny_folder, processor, rows, tmp_path, **settings)
    first.train()
    again = make_trainer(tiny_folder, processor, rows, tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 2
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_checkpoint_is_not_taken(tmp_path, caplog):
    assert last_checkpoint(str(tmp_path)) is None
    for step, text in ((9, '{"epoch": 1.0}'), (10, '{"epoch": 1.0}'), (11, '{"epo'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-12 was not written" in caplog.text and "checkpoint-11 was not written" in caplog.text


# What is refused


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("loss_type", "chunked_nll"),
        ("completion_only_loss", True),
        ("completion_only_loss", False),
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "batch_rebalance"),
        ("dispatch_batches", None),
        ("metric_for_best_model", "eval_accuracy"),
    ],
)
def test_values_that_do_not_work_with_latents_are_refused_by_name(tmp_path, option, value):
    settings = {option: value}
    if option == "dispatch_batches":
        settings = {"accelerator_config": {"dispatch_batches": True}}
    with pytest.raises(ValueError, match=option):
        DIFTConfig(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    "option", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func"]
)
def test_functions_that_would_be_ignored_are_refused_by_name(model, tmp_path, option):
    with pytest.raises(ValueError, match=option):
        DIFTTrainer(model, DIFTConfig(str(tmp_path), use_cpu=True, bf16=False), **{option: print})
