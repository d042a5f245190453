"""4DRL: replies are scored as they were sampled, sampled tokens get a gradient, unsupported options are refused."""

import inspect
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import grpo
import numpy as np
import pandas
import psutil
import pytest
import torch
import yaml
from launches import deepspeed, finish, log_history, start
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from trl import GRPOTrainer, ModelConfig

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor, batch_inference
from fourdthinker_hf.data.records import RecordError
from fourdthinker_hf.training import FourDRLConfig, FourDRLTrainer, check_records, question_dataset
from fourdthinker_hf.training.lora import LORA_TARGETS
from fourdthinker_hf.training.run import exit_status

ROOT = Path(__file__).resolve().parents[2]
WIDE = ROOT / "tests/video_inputs/wide_205to1.mp4"
QUESTIONS = ("which way does it move", "where", "which way", "what is red and how does it move now")


class Spy(FourDRLTrainer):
    """Keeps the sampled replies, their log-probabilities while they were sampled, and every score of them."""

    def rollout(self, prompts, trainer):
        output = super().rollout(prompts, trainer)
        self.replies, self.ids, self.masks = list(self._sampled_replies), output["completion_ids"], output["env_mask"]
        self.scores = []
        return output

    def sample_replies(self, inputs):
        self.generation_config.output_logits = self.generation_config.output_scores = True
        self.output = output = super().sample_replies(inputs)
        logps = (torch.stack(output.logits, 1).float() / self.temperature).log_softmax(-1)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        self.recorded = logps.gather(-1, new[..., None])[..., 0]  # (rows, new_tokens)
        return output

    def replay_and_score(self, model, input_ids, attention_mask, length, sampled):
        logps, entropies = super().replay_and_score(model, input_ids, attention_mask, length, sampled)
        if logps.requires_grad:
            logps.retain_grad()
        with torch.no_grad():
            zeroed = [reply._replace(latents=torch.zeros_like(reply.latents)) for reply in sampled]
            without_latents, _ = super().replay_and_score(model, input_ids, attention_mask, length, zeroed)
        rows = [next(i for i, other in enumerate(self.replies) if other is reply) for reply in sampled]
        adapters_off = any(getattr(module, "disable_adapters", False) is True for module in self.model.modules())
        is_old = model is self.model and not adapters_off
        scorer = "policy" if torch.is_grad_enabled() else "old" if is_old else "ref"
        self.scores += [(scorer, rows, logps), ("without", rows, without_latents)]
        return logps, entropies

    def differences(self) -> dict[str, float]:
        """The largest difference between each scorer's log-probabilities and those of the sampling, over the text
        after a mental image."""
        largest = {}
        for scorer, rows, logps in self.scores:
            for row, scored in zip(rows, logps.detach(), strict=True):
                ids = torch.tensor(self.ids[row])
                after_image = ((ids == self._config.latent_end_id).cumsum(0) > 0) & (
                    torch.tensor(self.masks[row]) == 1
                )
                difference = (scored[: len(ids)] - self.recorded[row, : len(ids)])[after_image].abs()
                if len(difference):
                    largest[scorer] = max(largest.get(scorer, 0.0), difference.max().item())
        return largest


@pytest.fixture
def questions(tmp_path, clip):
    """A file of four questions about one clip, of unequal lengths."""
    lines = [
        {"id": str(i), "video": str(clip), "question": question, "options": ["left", "right"], "answer": "right"}
        for i, question in enumerate(QUESTIONS)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def dataset(processor, questions):
    return question_dataset([questions], processor)


@pytest.fixture
def make_trainer(tiny_folder, processor, dataset, tmp_path):
    """`make_trainer(**settings) -> Spy`, with a model that often generates mental images."""

    def make(kind=Spy, early_end=False, model=None, data=None, peft_config=None, reward_funcs=distinct, **settings):
        model = model or FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
        model.config.latent_early_end = early_end
        args = FourDRLConfig(**base_settings(processor, tmp_path / "run") | settings)
        return kind(
            model=model,
            args=args,
            train_dataset=data or dataset,
            processing_class=processor,
            peft_config=peft_config,
            reward_funcs=reward_funcs,
        )

    return make


def base_settings(processor, out) -> dict:
    """Settings of one step in which a model with random weights starts mental images, and ends replies, at different
    times."""
    likely = {"<|latent_start|>": 2.8, "<|im_end|>": 2.0, "<|latent_end|>": 3.0}
    bias = [[[processor.tokenizer.convert_tokens_to_ids(token)], value] for token, value in likely.items()]
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_steps": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 24,
        "beta": 0.1,
        "learning_rate": 1e-2,
        "temperature": 0.7,
        "weight_decay": 0.0,
        "seed": 5,
        "generation_kwargs": {"sequence_bias": bias},
    }


def distinct(completion_ids, **kwargs) -> list[float]:
    """A reward that differs from reply to reply."""
    return [float(len(set(ids))) for ids in completion_ids]


# Replies are scored as they were sampled

LORA = {"r": 4, "target_modules": LORA_TARGETS, "lora_dropout": 0.3}
CASES = {
    "default": {},
    "early ends": {"early_end": True},
    "micro-batches that cut groups": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_generations": 8,
    },
    "gradient checkpointing": {"gradient_checkpointing": True},
    "eager": {"attention": "eager"},
    "num_iterations=2": {"num_iterations": 2},
    "LoRA": {"peft_config": LoraConfig(**LORA), "num_iterations": 2},
    "trained LoRA": {"peft_config": LoraConfig(**LORA, init_lora_weights=False), "num_iterations": 2},
    "LoRA, gradient checkpointing": {"peft_config": LoraConfig(**LORA), "gradient_checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_every_scorer_agrees_with_the_sampling(make_trainer, figure, case):
    settings = dict(CASES[case])
    trainer = make_trainer(**{k: v for k, v in settings.items() if k != "attention"})
    if "attention" in settings:
        for model in (trainer.unwrapped_model, trainer.ref_model):
            model.set_attn_implementation(settings["attention"])
    trainer.train()
    start = trainer._config.latent_start_id
    starts = [ids.index(start) for ids in trainer.ids if start in ids]
    assert len(set(starts)) > 2  # mental images start at different times
    found = trainer.differences()
    scorers = {"policy", "ref", "without"} | ({"old"} if trainer.num_iterations > 1 else set())
    assert found.keys() == scorers
    figure(f"4DRL, largest difference from sampling, {case}: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    assert found["policy"] <= 1e-5 and found.get("old", 0.0) <= 1e-5 and found["without"] > 1e-2
    assert (found["ref"] > 1e-2) if case == "trained LoRA" else (found["ref"] <= 1e-5)


def test_questions_about_videos_and_about_pictures_share_a_batch(make_trainer, processor, clip, tmp_path):
    """Two about a video, two about pictures of other sizes. One about text alone is no record, and is named."""
    rows = [{"id": str(i), "question": text, "answer": "right"} for i, text in enumerate((*QUESTIONS, "and now"))]
    for row, (width, color) in zip(rows[2:4], ((112, "red"), (84, "blue")), strict=True):
        Image.new("RGB", (width, 84), color).save(tmp_path / f"{color}.png")
        row |= {"frames": [f"{color}.png"] * 3, "timestamps": [0.0, 0.5, 1.0]}
    path = tmp_path / "mixed.jsonl"
    lines = [json.dumps(row | ({} if "frames" in row or row["id"] == "4" else {"video": str(clip)})) for row in rows]
    path.write_text("\n".join(lines[:4]))
    trainer = make_trainer(data=question_dataset([path], processor))
    trainer.train()
    assert len({len(reply.features) for reply in trainer.replies}) == 3
    found = trainer.differences()
    assert max(found["policy"], found["ref"]) <= 1e-5 and found["without"] > 1e-2
    path.write_text("\n".join(lines))
    with pytest.raises(RecordError, match="mixed.jsonl, line 5: needs either a video or frames"):
        check_records([path])


def test_the_reference_keeps_its_own_head(make_trainer):
    """In the second step the policy has changed, and the reference still scores as the first model does."""
    trainer = make_trainer(max_steps=2)
    trainer.train()
    batch, length = trainer._buffered_inputs[0], trainer._buffered_inputs[0]["completion_ids"].shape[1]
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    trainer.model.load_state_dict(trainer.ref_model.state_dict())
    with torch.no_grad():
        logps, _ = FourDRLTrainer.replay_and_score(trainer, trainer.model, ids, mask, length, batch["sampled_replies"])
    torch.testing.assert_close(batch["ref_per_token_logps"], logps, atol=1e-5, rtol=0)


def test_bf16_scores_are_close_to_the_sampling(make_trainer, figure):
    trainer = make_trainer(bf16=True, num_iterations=2)
    trainer.train()
    found = trainer.differences()
    figure("4DRL, largest difference from sampling, bf16: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    assert max(found["policy"], found["old"], found["ref"]) < 0.1


def test_without_replay_the_scores_differ_from_the_sampling(make_trainer):
    trainer = make_trainer(replay=False)
    trainer.train()
    assert min(trainer.differences()[scorer] for scorer in ("policy", "ref")) > 1e-2
    ((_, rows, logps),) = [score for score in trainer.scores if score[0] == "policy"]
    for row in rows:
        start = trainer._config.latent_start_id
        length = trainer.ids[row].index(start) + 1 if start in trainer.ids[row] else len(trainer.ids[row])
        torch.testing.assert_close(logps[row, :length], trainer.recorded[row, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[9, 4, 24, 1], [0, 7, 0, 3]])
def test_a_shared_prompt_gives_the_scores_of_separate_prompts(make_trainer, lengths):
    """Scores and gradients of replies that are packed behind one copy of their prompt, and of replies in rows of their
    own with transformers' attention; some replies are empty."""
    trainer = make_trainer(max_completion_length=24, learning_rate=0.0)
    trainer.train()
    batch = trainer._buffered_inputs[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    width = batch["completion_ids"].shape[1]
    is_reply = torch.arange(width) < torch.tensor(lengths * 4)[:, None]
    mask = torch.cat([batch["prompt_mask"], (is_reply & batch["completion_mask"].bool()).long()], 1)
    results = []
    for separate in (False, True):
        if separate:
            trainer.unwrapped_model.set_attn_implementation("sdpa")
        trainer.model.zero_grad()
        cut = []  # the replies with the latents of their kept tokens
        for reply, length in zip(batch["sampled_replies"], is_reply.sum(-1).tolist(), strict=True):
            row = ids[len(cut), -width:][: max(length - 1, 0)]
            cut.append(reply._replace(latents=reply.latents[: int((row == trainer._config.latent_token_id).sum())]))
        logps, entropies = FourDRLTrainer.replay_and_score(trainer, trainer.model, ids, mask, width, cut)
        (logps.sum() + entropies.sum()).backward()
        grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        results.append((logps.detach(), entropies.detach(), grads))
    shared, separate = results
    is_scored = mask[:, -width:].bool() & trainer.sampled_token_mask(ids[:, -width:])
    assert (shared[0] != 0).equal(is_scored) and (shared[1] != 0).equal(is_scored)
    for a, b in zip(shared[:2], separate[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert shared[2].keys() == separate[2].keys() and not any("visual" in name for name in separate[2])
    for name, gradient in separate[2].items():
        torch.testing.assert_close(shared[2][name], gradient, atol=1e-4, rtol=1e-4, msg=name)


# Which tokens get a gradient


@pytest.mark.parametrize("early_end", [False, True])
def test_sampled_tokens_get_a_gradient_and_forced_ones_do_not(make_trainer, early_end):
    trainer = make_trainer(early_end=early_end, max_completion_length=40)
    trainer.train()
    config, seen = trainer._config, set()
    advantages = trainer._buffered_inputs[0]["advantages"]
    ((_, rows, logps),) = [score for score in trainer.scores if score[0] == "policy"]
    for row in rows:
        ids, pads = trainer.ids[row], 0
        for token, gradient in zip(ids, logps.grad[row].tolist(), strict=False):
            pads = pads + 1 if token == config.latent_token_id else pads
            if token == config.latent_token_id or (token == config.latent_end_id and pads == config.latent_size):
                assert gradient == 0
                seen.add("forced")
            elif advantages[row]:
                assert gradient != 0
                seen.add("ended" if token == config.latent_end_id else "text")
            pads = 0 if token == config.latent_end_id else pads
        assert (logps.grad[row, len(ids) :] == 0).all()
    assert seen == {"forced", "text", "ended"} if early_end else {"forced", "text"}


def test_sampled_token_mask(make_trainer):
    trainer = make_trainer(early_end=True)
    config = trainer._config
    pad, start, end = config.latent_token_id, config.latent_start_id, config.latent_end_id
    ids = torch.tensor([5, start, pad, pad, pad, pad, end, start, end, start, pad, end, 5, start, pad])
    expected = [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert trainer.sampled_token_mask(ids).int().tolist() == expected
    config.latent_early_end = False
    assert trainer.sampled_token_mask(ids[:7]).int().tolist() == expected[:7]


# The trainer decides how replies are sampled


def test_the_checkpoint_does_not_change_the_sampling(make_trainer, tiny_folder):
    model = FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder)
    model.generation_config.update(
        do_sample=True,
        temperature=1e-6,
        top_k=1,
        top_p=0.1,
        min_p=0.9,
        typical_p=0.2,
        repetition_penalty=1.5,
        no_repeat_ngram_size=1,
        min_new_tokens=24,
        num_beams=2,
        num_return_sequences=2,
    )
    before = model.generation_config.to_dict()
    trainer = make_trainer(model=model, generation_kwargs=None)
    trainer.train()
    assert trainer.unwrapped_model.generation_config.to_dict() == before
    assert len({tuple(ids) for ids in trainer.ids[:4]}) == 4
    config, logits = trainer._config, torch.stack(trainer.output.logits, 1)
    scores, ids = torch.stack(trainer.output.scores, 1), trainer.output.sequences[:, -logits.shape[1] :]
    inside = torch.isin(ids.roll(1, 1), torch.tensor([config.latent_start_id, config.latent_token_id]))
    inside[:, 0] = False
    never = [config.latent_token_id, config.latent_end_id, config.image_token_id, config.video_token_id]
    expected = logits / 0.7
    expected[..., never] = -torch.inf
    torch.testing.assert_close(scores[~inside], expected[~inside])


# What runs how often


def test_videos_and_prompts_run_once(make_trainer, processor, tmp_path, clip, write_video, monkeypatch):
    other = write_video(tmp_path / "other.mp4", np.full((16, 112, 112, 3), 30, np.uint8))
    lines = [
        {"id": str(i), "video": str((clip, other)[i % 2]), "question": question, "answer": "right"}
        for i, question in enumerate(QUESTIONS)
    ]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    opened, towers, forwards, positions = [], [], [], []
    real = batch_inference.open_frames
    monkeypatch.setattr(batch_inference, "open_frames", lambda *args: opened.append(args[1]) or real(*args))
    trainer = make_trainer(kind=FourDRLTrainer, data=question_dataset([tmp_path / "two.jsonl"], processor))
    base = trainer.unwrapped_model.model
    base.visual.register_forward_hook(lambda m, args, kwargs, out: towers.append(len(args[0])), with_kwargs=True)
    trainer.ref_model.model.visual.register_forward_hook(lambda *_: towers.append("reference"))
    base.language_model.register_forward_hook(
        lambda m, args, kwargs, out: forwards.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    rope = base.get_rope_index

    def counted(input_ids, **kwargs):
        positions.append(len(input_ids))
        return rope(input_ids, **kwargs)

    monkeypatch.setattr(base, "get_rope_index", counted)
    trainer.train()
    assert sorted(opened) == sorted(map(str, (clip, other)))
    features = {id(reply.features): reply.features for reply in trainer._buffered_inputs[0]["sampled_replies"]}
    assert len(features) == 2
    # Both videos at once, four patches to a feature, for rollout, policy and reference.
    assert towers == [4 * sum(map(len, features.values()))]
    prefill, *decoding, scoring = forwards
    assert prefill[0] == 4 and prefill[1] > 50
    assert set(decoding) == {(16, 1)} and len(decoding) <= 24
    # One row holds the four prompts and the sixteen replies, and not one token of padding.
    batch = trainer._buffered_inputs[0]
    assert scoring == (1, int(batch["prompt_mask"][::4].sum()) - 4 + int(batch["completion_mask"].sum()))
    assert positions[0] == 4 and len(positions) == 3  # rollout, reference, policy


# The trainer's overrides, options and rewards


def test_overridden_methods_exist_in_trl():
    """If a release of TRL renamed one of them, the override would no longer run, in some cases without an error."""
    overridden = {
        "_compute_loss": ["model", "inputs"],
        "_generate": ["prompts"],
        "_generate_and_score_completions": ["inputs"],
        "_get_grad_norm": ["model", "grad_norm"],
        "_get_per_token_logps_and_entropies": [
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
        ],
        "_load_best_model": [],
        "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
        "_load_rng_state": ["checkpoint"],
        "_prepare_inputs": ["generation_batch"],
        "_run_epoch": [],
        "_save": ["output_dir", "state_dict"],
        "_save_rng_state": ["output_dir"],
        "create_model_card": [],
        "log": ["logs", "start_time"],
    }
    for name, parameters in overridden.items():
        trl_parameters = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:]
        assert trl_parameters[: len(parameters)] == parameters, name
    own = {name for kind in FourDRLTrainer.__mro__[:2] for name in vars(kind)}
    private = {name for name in own if hasattr(GRPOTrainer, name) and not name.startswith("__")}
    assert private == overridden.keys()
    source = inspect.getsource(GRPOTrainer)
    for used in (
        "self.rollout_func(prompts, self)",
        'extra_fields.pop("env_mask", None)',
        "self._buffered_inputs",
        "self._step % generate_every",
        "completions, logprobs, extra_fields",
    ):
        assert used in source, used


@pytest.mark.parametrize("name", ["dispatch_batches", "split_batches"])
def test_batches_that_another_process_would_cut_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=True does not work with 4DRL"):
        FourDRLConfig(str(tmp_path), use_cpu=True, bf16=False, accelerator_config={name: True})


@pytest.mark.parametrize("name", ["tools", "environment_factory", "rollout_func", "quantization_config"])
def test_arguments_for_more_than_one_turn_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} does not work with 4DRL"):
        FourDRLTrainer(model=None, args=None, **{name: [print]})


def test_adapters_that_scoring_would_ignore_are_refused(make_trainer):
    with pytest.raises(ValueError, match="trainable_token_indices do not work with 4DRL"):
        make_trainer(peft_config=LoraConfig(**LORA, trainable_token_indices=[3]))


def test_the_reward_is_the_weighted_sum(make_trainer):
    trainer = make_trainer(reward_funcs=None, imagery_weight=0.5, length_weight=0.1, max_steps=2, learning_rate=0.0)
    trainer.train()
    names = ["accuracy", "format", "imagery", "soft_overlong_punishment_reward"]
    assert trainer.reward_func_names == names
    for log in trainer.state.log_history[:2]:
        parts = [log[f"rewards/{name}/mean"] for name in names]
        assert log["reward"] == pytest.approx(parts[0] + 0.2 * parts[1] + 0.5 * parts[2] + 0.1 * parts[3], abs=1e-6)
        assert parts[3] < 0  # some replies have the maximum length
        assert log["completions/images"] > 0 and "kl" in log and "entropy" in log and "clip_ratio/region_mean" in log
    assert make_trainer(reward_funcs=None, format_weight=0.0).reward_func_names == ["accuracy"]


def test_all_weights_but_the_vision_tower_are_trained(make_trainer):
    trainer = make_trainer()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".visual." in name), name


@pytest.mark.parametrize("adapters", [False, True])
def test_a_resumed_run_ends_at_the_same_bits(make_trainer, tmp_path, adapters):
    """Resumed between two steps that learn from the same rollout; nothing of the first run is left in memory."""
    runs = []
    for number in range(2):
        trainer = make_trainer(
            kind=FourDRLTrainer,
            peft_config=LoraConfig(**LORA) if adapters else None,
            max_steps=3,
            num_iterations=2,
            save_strategy="steps",
            save_steps=1,
            learning_rate=1e-3,
            per_device_train_batch_size=8,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1") if number else None)
        runs.append((trainer.state.log_history[:3], dict(trainer.model.named_parameters())))
    for row in runs[0][0] + runs[1][0]:
        del row["step_time"]
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], parameter) for name, parameter in runs[1][1].items())


def test_a_lora_run_leaves_a_whole_model(tiny_folder, processor, questions, tmp_path):
    run = grpo.ScriptArguments(records=[str(questions)], merge_adapter=True)
    args = FourDRLConfig(**base_settings(processor, tmp_path / "run"), length_weight=1.0)
    grpo.main(run, args, ModelConfig(str(tiny_folder), use_peft=True))
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    assert not (tmp_path / "run/adapter_config.json").exists()
    ours, start = (
        FourDThinkerForConditionalGeneration.from_pretrained(path) for path in (tmp_path / "run", tiny_folder)
    )
    moved = {name for name, p in ours.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert len(moved) == 2 * 7 and all("layers" in name for name in moved)  # layers x linear ones


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_before_the_weights_change(make_trainer, where):
    trainer = make_trainer()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    if where == "loss":
        score = trainer.replay_and_score
        trainer.replay_and_score = lambda *args: (score(*args)[0] * torch.nan, torch.zeros(16, 24))
    else:
        trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(FloatingPointError, match=f"Step 1: the {where}.* is not finite"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_an_error_names_the_record_of_a_broken_video(make_trainer, processor, tmp_path, clip):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:1500])
    (tmp_path / "bad.jsonl").write_text('{"id": "x", "question": "q", "answer": "a", "video": "cut.mp4"}\n' * 4)
    trainer = make_trainer(data=question_dataset([tmp_path / "bad.jsonl"], processor))
    with pytest.raises(RecordError, match=r"bad\.jsonl, line \d: .*truncated or damaged"):
        trainer.train()


def test_bad_records_can_be_skipped_and_are_counted(make_trainer, processor, tmp_path, questions, caplog):
    shutil.copy(WIDE, tmp_path)
    (tmp_path / "cut.mp4").write_bytes(WIDE.read_bytes()[:900])
    row = {"id": "x", "question": "q", "options": ["a", "b"], "answer": "a"}
    bad = [{**row, "video": name} for name in (WIDE.name, "cut.mp4", "gone.mp4")] + [
        {**row, "options": ["a"], "video": WIDE.name}
    ]
    lines = ["{", *map(json.dumps, bad)]
    questions.write_text("\n".join(lines) + "\n" + questions.read_text())
    data = question_dataset([questions], processor, skip_bad=True)
    assert [data[i]["index"] for i in range(6)] == [5] * 6 and data[0]["id"] == "0"
    assert [data[i]["num_skipped"] for i in range(6)] == [5, 4, 3, 2, 1, 0]
    for number, reason in enumerate(
        ("Expecting", "4096 x 20 pixels", "truncated or damaged", "missing file", "1 options, where 2 to 8"), start=1
    ):
        assert re.search(rf"questions\.jsonl, line {number}: .*{reason}", caplog.text)
    trainer = make_trainer(kind=FourDRLTrainer, data=data.select([4, 5, 6, 7]))
    trainer.train()
    assert trainer.state.log_history[0]["skipped_records"] == 1
    assert exit_status(trainer) == 3 and exit_status(make_trainer(data=data)) == 0
    with pytest.raises(RecordError, match=r"questions\.jsonl, line 1: Expecting"):
        check_records([questions])
    questions.write_text("\n".join(lines[1:]))
    with pytest.raises(RecordError, match=r"questions\.jsonl, line 1: .*4096 x 20 pixels"):
        check_records([questions])


def test_the_published_rl_set_is_read(make_trainer, processor, tmp_path, clip):
    line = {
        "Question": "which way",
        "A": "left",
        "B": "right",
        "C": "up",
        "D": "down",
        "Correct": "B",
        "video_path": str(clip),
    }
    (tmp_path / "rl.jsonl").write_text((json.dumps(line) + "\n") * 4)
    data = question_dataset([tmp_path / "rl.jsonl"], processor)
    assert data[0]["answer"] == "right" and data[0]["prompt"] == "which way\nA. left\nB. right\nC. up\nD. down"
    trainer = make_trainer(data=data, reward_funcs=None, log_completions=True, num_completions_to_print=0)
    trainer.train()
    table = pandas.read_parquet(tmp_path / "run/completions/completions_00001.parquet")
    assert list(table.columns) == ["step", "prompt", "completion", "accuracy", "format", "advantage"]
    assert len(table) == 16 and table["completion"].str.contains("<output_image>").any()


def test_evaluation_logs_its_metrics(make_trainer, dataset):
    trainer = make_trainer(kind=FourDRLTrainer, per_device_eval_batch_size=8, num_generations_eval=4)
    trainer.eval_dataset = dataset
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_reward", "eval_completions/images", "eval_kl"} <= metrics.keys()


# Several processes


def work(kind: str, folder: str, questions: str, out: str, **settings) -> None:
    """One process: a run of the trainer `kind`. It writes its prompts, its replies and the differences to `out`."""
    processor = FourDThinkerProcessor.from_pretrained(folder)
    args = FourDRLConfig(**base_settings(processor, out) | settings)
    trainer = {"spy": Spy, "nan": NaNTrainer, "dies": KilledTrainer}[kind](
        model=FourDThinkerForConditionalGeneration.from_pretrained(folder),
        args=args,
        reward_funcs=distinct,
        train_dataset=question_dataset([questions], processor),
        processing_class=processor,
    )
    trainer.train()
    result = {"ids": trainer.ids, "prompts": [row["id"] for row in trainer._rows], **trainer.differences()}
    Path(out, f"{args.process_index}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()  # as in train/sft.py
    trainer.end()


class NaNTrainer(FourDRLTrainer):
    """In the second process the loss of the second step is NaN."""

    def replay_and_score(self, *args):
        logps, entropies = super().replay_and_score(*args)
        is_bad = self.state.global_step == 1 and self.args.process_index == 1
        return logps * torch.nan if is_bad else logps, entropies


class KilledTrainer(FourDRLTrainer):
    """The second process is killed in its second step."""

    def replay_and_score(self, *args):
        if self.state.global_step == 1 and self.args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().replay_and_score(*args)


@pytest.fixture
def start_workers(tiny_folder, questions, tmp_path):
    """`start_workers(kind, launch, **settings) -> process`."""

    def run(kind: str, launch: tuple, **settings):
        arguments = json.dumps({"kind": kind, "folder": str(tiny_folder), "questions": str(questions), **settings})
        return start(Path(__file__), arguments, str(tmp_path), launch=launch)

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("hardware", "gathered"), [("zero2", True), ("zero3", True), ("zero3", False)])
def test_with_deepspeed_every_scorer_agrees_with_the_sampling(start_workers, tmp_path, figure, hardware, gathered):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2}
    finish(start_workers("spy", deepspeed(hardware), ds3_gather_for_generation=gathered, **settings))
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert not set(results[0]["prompts"]) & set(results[1]["prompts"])
    assert not {tuple(ids) for ids in results[0]["ids"]} & {tuple(ids) for ids in results[1]["ids"]}
    for rank, found in enumerate(results):
        parts = ", ".join(f"{scorer} {found[scorer]:.1e}" for scorer in ("policy", "old", "ref", "without"))
        figure(f"4DRL, largest difference from sampling, {hardware}, gathered: {gathered}, process {rank}: {parts}")
        assert max(found[scorer] for scorer in ("policy", "old", "ref")) <= 1e-5 and found["without"] > 1e-2


@pytest.mark.slow
def test_replies_to_one_prompt_in_two_processes_differ(start_workers, tmp_path):
    """A group of eight, four in each process, the same prompt in both."""
    settings = {"per_device_train_batch_size": 4, "num_generations": 8}
    finish(start_workers("spy", ("--multi_gpu", "--num_processes", 2, "--main_process_port", 0), **settings))
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["prompts"] == results[1]["prompts"] and len(set(results[0]["prompts"])) == 1
    assert not {tuple(ids) for ids in results[0]["ids"]} & {tuple(ids) for ids in results[1]["ids"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "dies"])
def test_an_error_in_one_process_stops_all(start_workers, tmp_path, kind):
    launch = ("--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    run = start_workers(kind, launch, per_device_train_batch_size=4, max_steps=9, save_strategy="steps", save_steps=1)
    output = run.communicate(timeout=300)[0]
    assert run.returncode != 0
    if kind == "nan":
        assert output.count("FloatingPointError: Step 2: the loss of process 1 is not finite. All processes stop") == 2
    else:
        assert "Signal 9 (SIGKILL) received" in output
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_killed_run_continues_to_the_same_bits(tiny_folder, processor, questions, tmp_path):
    """ZeRO-2, two processes; checkpoints are written between the steps that learn from the same rollout."""
    settings = {
        **base_settings(processor, ""),
        "model_name_or_path": str(tiny_folder),
        "records": [str(questions)],
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 1,
        "num_iterations": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "imagery_weight": 1.0,
        "length_weight": 0.5,
        "log_completions": True,
        "num_completions_to_print": 0,
    }

    def run(name: str):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / name)}))
        return start(ROOT / "train/grpo.py", "--config", path, launch=deepspeed("zero2"))

    finish(run("whole"))
    killed = run("killed")
    while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None, killed.communicate()[0][-5000:]
        time.sleep(0.01)
    for process in [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]:
        process.kill()  # SIGKILL
    killed.communicate()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    finish(run("killed"))
    assert "holds a finished run" in finish(run("killed"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    difference = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert difference == 0
    logs = [log_history(tmp_path / name)[:-1] for name in ("whole", "killed")]
    for row in logs[0] + logs[1]:
        del row["step_time"]
        row.pop("train_runtime", None)
    assert logs[0] == logs[1]
    tables = [
        sorted(path.name for path in (tmp_path / name / "completions").iterdir()) for name in ("whole", "killed")
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 7


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    work(out=sys.argv[2], **settings)
