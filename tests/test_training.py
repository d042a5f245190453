"""Collator and DIFT loss: exact labels, the loss against its formula, what moves and what does not."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer


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


def spoken(processor, labels):
    return processor.tokenizer.convert_ids_to_tokens(labels[labels != -100].tolist())


def test_labels_are_what_the_assistant_says_without_the_pads(processor, rows):
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


def test_imagery_and_options_can_be_left_out(processor, rows):
    batch = DIFTCollator(processor, imagery=False, options=False)(rows)
    text = processor.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text.startswith("user\nwhich way\nassistant\n<think>it moves</think>")
    assert "pixel_values_latent" not in batch


def make_trainer(tiny_folder, processor, rows, out, **kwargs):
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    settings = {"per_device_train_batch_size": 3, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    args = DIFTConfig(
        str(out), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
        disable_tqdm=True, **{**settings, **kwargs},
    )  # fmt: skip
    return DIFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=processor,
        data_collator=DIFTCollator(processor),
    )  # fmt: skip


def test_loss_is_the_weighted_sum_of_both_means(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, ce_weight=0.1, sim_weight=2.0)
    batch = DIFTCollator(processor)(rows)
    model = trainer.model
    with torch.no_grad():
        output = model(**batch)
        is_pad = batch["input_ids"] == model.config.latent_token_id
        predicted = output.last_hidden_state[:, :-1][is_pad[:, 1:]]
        sim = (1 - F.cosine_similarity(predicted, output.latent_targets, dim=-1)).mean()
    samples, num_items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = trainer.compute_loss(model, samples[0], num_items_in_batch=num_items)
    torch.testing.assert_close(loss, 0.1 * output.loss + 2.0 * sim)


def test_the_text_moves_and_the_frozen_tower_does_not(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".visual." in name), name
    assert {"loss", "latent_cosine", "latent_centred_cosine"} <= set(trainer.state.log_history[0])


def test_how_a_batch_is_cut_does_not_matter(tiny_folder, processor, rows, tmp_path):
    """One batch of 2 against 2 x 1 accumulated: unequal text, unequal numbers of latents, equal weights after."""
    states = []
    for size, steps in ((2, 1), (1, 2)):
        trainer = make_trainer(
            tiny_folder, processor, rows[:2], tmp_path / str(size), per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, max_steps=1, learning_rate=1e-3, optim="sgd", weight_decay=0.0,
        )  # fmt: skip
        trainer.train()
        states.append((trainer.state.log_history[0]["loss"], dict(trainer.model.named_parameters())))
    (loss, whole), (other_loss, cut) = states
    assert loss == pytest.approx(other_loss, abs=1e-6)
    for name, parameter in whole.items():
        torch.testing.assert_close(parameter, cut[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("option", ["packing", "padding_free", "use_liger_kernel"])
def test_options_that_lose_latents_are_refused_by_name(tmp_path, option):
    with pytest.raises(ValueError, match=option):
        DIFTConfig(str(tmp_path), **{option: True})


def test_a_saved_run_loads_through_the_auto_classes(tiny_folder, processor, rows, tmp_path):
    trainer = make_trainer(tiny_folder, processor, rows, tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert {"model.safetensors", "processor_config.json", "modeling_fourdthinker.py", "video_fourdthinker.py"} <= names
    loaded = FourDThinkerForConditionalGeneration.from_pretrained(tmp_path / "final")
    assert len(loaded.config.latent_mean) == 192
    for a, b in zip(loaded.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
