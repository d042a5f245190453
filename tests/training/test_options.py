"""Every option of transformers' and TRL's configs is refused by name, or is in a list here: it is honoured."""

import re
from dataclasses import MISSING, fields

import grpo
import pytest
import sft
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, SFTConfig

from fourdthinker_hf.training import DIFTConfig, FourDRLConfig
from fourdthinker_hf.training.run import check_arguments
from fourdthinker_hf.training.unsupported_options import COMMON, DIFT, FOURDRL, UNSUPPORTED_MODEL_OPTIONS

# By transformers' Trainer, of which both trainers are: it reads them where the run needs them.
TRAINER = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
gradient_accumulation_steps max_grad_norm bf16 tf32 activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps logging_strategy logging_steps
logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy
eval_steps eval_delay per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps
save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout deepspeed debug skip_memory_metrics
""".split()
# By run.py: the checkpoint to go on from, and publishing. The launcher sets local_rank.
LAUNCHER = "resume_from_checkpoint push_to_hub hub_model_id hub_token hub_private_repo local_rank".split()
# Of SFTTrainer and of Trainer, in DIFT
DIFT_ONLY = "activation_offloading fp16 neftune_noise_alpha".split()
# By GRPOTrainer: the rollout, the loss and the logs. prediction_loss_only: an evaluation returns losses either way.
FOURDRL_ONLY = """
prediction_loss_only num_generations num_generations_eval max_completion_length ds3_gather_for_generation
shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation temperature top_p top_k min_p
generation_kwargs repetition_penalty beta num_iterations epsilon delta epsilon_high sapo_temperature_neg
sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level reward_weights
multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model ref_model_mixup_alpha
ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl log_completions log_multimodal
num_completions_to_print log_unique_prompts log_completions_hub_repo
""".split()
MODEL = """
model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules
lora_target_parameters lora_modules_to_save use_rslora use_dora load_in_8bit load_in_4bit bnb_4bit_quant_type
use_bnb_nested_quant bnb_4bit_quant_storage
""".split()
LAUNCHERS_OWN = "records eval_records skip_bad merge_adapter".split()

CASES = {
    "DIFT": (SFTConfig, DIFTConfig, (*COMMON, *DIFT), [*TRAINER, *LAUNCHER, *DIFT_ONLY]),
    "4DRL": (GRPOConfig, FourDRLConfig, (*COMMON, *FOURDRL), [*TRAINER, *LAUNCHER, *FOURDRL_ONLY]),
    "the launcher": (ModelConfig, ModelConfig, UNSUPPORTED_MODEL_OPTIONS, MODEL),
}


def names(config) -> list[str]:
    return sorted(option.name for option in fields(config))


@pytest.mark.parametrize("case", CASES)
def test_every_option_is_honoured_or_refused(case):
    """A new option of another version of TRL is in neither list: it must be tried first."""
    config, _, refused, honoured = CASES[case]
    known = [*honoured, *(name for name, *_ in refused)]
    assert sorted(set(known)) == sorted(known)  # once each
    missing = set(names(config)) - set(known)
    assert not missing
    # 4DRL's deprecated names and those of older versions may be gone; no other name may be in the lists.
    assert not set(known) - set(names(config)) - set(names(SFTConfig)) - set(names(GRPOConfig))


def test_the_launchers_own_options():
    for launcher in (sft, grpo):
        assert names(launcher.ScriptArguments) == sorted(LAUNCHERS_OWN)


def test_the_first_allowed_value_is_the_default():
    for _, config, refused, _ in CASES.values():
        defaults = {
            option.name: option.default if option.default_factory is MISSING else option.default_factory()
            for option in fields(config)
        }
        for name, allowed, _ in refused:
            assert defaults[name] in allowed, name


OTHER = {  # values that are not allowed, of the options whose values are no flags, words or numbers
    "parallelism_config": object(),
    "include_for_metrics": ["inputs"],
    "pad_to_multiple_of": 8,
}


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in ("DIFT", "4DRL") for name, *_ in CASES[case][2]], ids=lambda x: x
)
def test_the_others_are_refused_by_name(case, name, tmp_path):
    _, config, refused, _ = CASES[case]
    (allowed,) = (values for other, values, _ in refused if other == name)
    first = allowed[0]
    value = OTHER.get(
        name, not first if isinstance(first, bool) else first + 1 if isinstance(first, float | int) else "x"
    )
    with pytest.raises(ValueError, match=f"^{name}=.* does not work with {case}: .*Use {re.escape(repr(first))}"):
        config(str(tmp_path), use_cpu=True, bf16=False, **{name: value})


@pytest.mark.parametrize(
    ("script", "training", "model", "message"),
    [
        ({"merge_adapter": True}, {}, {}, "merge_adapter needs use_peft"),
        ({}, {}, {"lora_r": 8}, "lora_r needs use_peft"),
        ({"eval_records": ["b"]}, {}, {}, "eval_records need eval_strategy"),
        ({}, {"eval_questions": 4}, {}, "eval_questions needs eval_records"),
        ({}, {}, {"use_peft": True, "lora_task_type": "SEQ_CLS"}, "lora_task_type='SEQ_CLS' does not work"),
    ],
)
def test_an_option_without_effect_beside_the_others_is_refused(tmp_path, script, training, model, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(
            sft.ScriptArguments(["a"], **script),
            DIFTConfig(str(tmp_path), use_cpu=True, bf16=False, **training),
            ModelConfig("m", **model),
        )


def test_transformers_own_options_are_among_them():
    assert set(names(TrainingArguments)) <= {*TRAINER, *LAUNCHER, "fp16", "neftune_noise_alpha"} | {
        name for name, *_ in (*COMMON, *DIFT)
    }
