"""The options of transformers and TRL that a run refuses by name: each would give wrong results without a word, or
have no effect. A row is the option's name, its allowed values, the first of which is the default, and the reason.

tests/training/test_options.py lists the others, which are honoured.
"""

ENDS = "replies and rows end as the processor's template says"
NO_PREDICTIONS = "an evaluation returns losses and metrics, no predictions"
OTHER_UPLOAD = "what is published is the result, once, as `fourdthinker publish` does"
LAUNCHED = "the launcher trains; eval_strategy says when it evaluates"
LOADED = "the launcher loads the model; see the model's own options"
PREPARED = "records are not prepared by TRL: they are read when it is their turn"
NO_VLLM = "vLLM passes only token ids and would drop the latents"

# Of both stages
COMMON = (
    ("use_liger_kernel", (False,), "its kernels are made for a model without latents"),
    ("liger_kernel_config", (None,), "its kernels are made for a model without latents"),
    ("torch_compile", (False,), "a compiled model has not been tried with latents"),
    ("torch_compile_backend", (None,), "a compiled model has not been tried with latents"),
    ("torch_compile_mode", (None,), "a compiled model has not been tried with latents"),
    ("parallelism_config", (None,), "latents follow whole rows; several processes share the batch"),
    ("fsdp", (None, False, "", []), "weights are sharded by DeepSpeed: see train/accelerate/"),
    ("fsdp_config", (None, {}), "weights are sharded by DeepSpeed: see train/accelerate/"),
    (
        "auto_find_batch_size",
        (False,),
        "a batch that does not fit ends the run; `fourdthinker memory` tells what fits",
    ),
    ("remove_unused_columns", (False,), "the records' columns are all read"),
    ("label_smoothing_factor", (0.0,), "the loss of the text has no smoothing"),
    ("average_tokens_across_devices", (True,), "the losses are means over all processes"),
    ("label_names", (None,), NO_PREDICTIONS),
    ("include_for_metrics", ([],), NO_PREDICTIONS),
    ("batch_eval_metrics", (False,), NO_PREDICTIONS),
    ("eval_do_concat_batches", (True,), NO_PREDICTIONS),
    ("eval_use_gather_object", (False,), NO_PREDICTIONS),
    ("eval_accumulation_steps", (None,), NO_PREDICTIONS),
    ("bf16_full_eval", (False,), "it has no effect on an evaluation during training"),
    ("fp16_full_eval", (False,), "it has no effect on an evaluation during training"),
    ("use_cache", (False,), "training needs no cache"),
    ("do_train", (False,), LAUNCHED),
    ("do_eval", (False,), LAUNCHED),
    ("do_predict", (False,), LAUNCHED),
    ("hub_strategy", ("every_save",), OTHER_UPLOAD),
    ("hub_always_push", (False,), OTHER_UPLOAD),
    ("hub_revision", (None,), OTHER_UPLOAD),
    ("model_init_kwargs", (None,), LOADED),
    ("trust_remote_code", (False,), "models are loaded by this package's own classes"),
    ("router_aux_loss_coef", (None,), "the model has no experts"),
)

DIFT = (
    ("packing", (False,), "latents follow the tokens of unpacked rows"),
    ("eval_packing", (None, False), "latents follow the tokens of unpacked rows"),
    ("packing_strategy", ("bfd",), "latents follow the tokens of unpacked rows"),
    ("padding_free", (False,), "latents follow the tokens of padded rows"),
    (
        "max_length",
        (None,),
        "a cut would separate latents from their target frames; the processor limits the length of videos",
    ),
    ("truncation_mode", ("keep_start",), "no row is cut"),
    ("loss_type", ("nll",), "the loss of the text is the cross-entropy"),
    ("assistant_only_loss", (False,), "the labels are always the assistant's tokens"),
    ("completion_only_loss", (None,), "the labels are always the assistant's tokens"),
    ("chat_template_path", (None,), "the labels are found with the processor's own template"),
    ("pad_to_multiple_of", ("auto", None), "rows are padded to the longest row"),
    ("shuffle_dataset", (False,), "the sampler shuffles; see train_sampling_strategy"),
    ("train_sampling_strategy", ("random", "sequential"), "lengths are not known before the frames are decoded"),
    ("length_column_name", ("length",), "lengths are not known before the frames are decoded"),
    ("prediction_loss_only", (True,), "logits are computed only where there are labels"),
    ("dataset_text_field", ("text",), PREPARED),
    ("dataset_kwargs", (None, {}, {"skip_prepare_dataset": True}), PREPARED),
    ("dataset_num_proc", (None,), PREPARED),
    ("eos_token", (None,), ENDS),
    ("pad_token", (None,), ENDS),
)

FOURDRL = (
    ("use_vllm", (False,), NO_VLLM),
    ("use_transformers_continuous_batching", (False,), "continuous batching would drop the latents"),
    ("transformers_continuous_batching_config", (None,), "continuous batching would drop the latents"),
    ("use_transformers_paged", (False,), "continuous batching would drop the latents"),
    ("cache_implementation", (None,), "the cache of a prompt is filled before its replies are sampled"),
    ("cast_lm_head_to_fp32", (False,), "replies would be sampled by one head and scored by another"),
    ("disable_dropout", (True,), "with dropout a reply would not be scored by the network that sampled it"),
    ("neftune_noise_alpha", (None,), "with noise a reply would not be scored by the network that sampled it"),
    ("fp16", (False,), "its loss scaling expects infinite gradients, at which 4DRL stops; use bf16"),
    ("chat_template_kwargs", (None, {}), "the processor makes the prompt, as in evaluation"),
    ("max_tool_calling_iterations", (None,), "a reply is one turn, without tools"),
    ("train_sampling_strategy", ("random",), "the sampler repeats each question for its replies; see shuffle_dataset"),
    ("length_column_name", ("length",), "the sampler repeats each question for its replies; see shuffle_dataset"),
    ("vllm_mode", ("colocate",), NO_VLLM),
    ("vllm_model_impl", ("vllm",), NO_VLLM),
    ("vllm_enable_sleep_mode", (False,), NO_VLLM),
    ("vllm_structured_outputs_regex", (None,), NO_VLLM),
    ("vllm_server_base_url", (None,), NO_VLLM),
    ("vllm_server_host", ("0.0.0.0",), NO_VLLM),
    ("vllm_server_port", (8000,), NO_VLLM),
    ("vllm_server_timeout", (240.0,), NO_VLLM),
    ("vllm_group_port", (51216,), NO_VLLM),
    ("vllm_gpu_memory_utilization", (0.3,), NO_VLLM),
    ("vllm_max_model_length", (None,), NO_VLLM),
    ("vllm_tensor_parallel_size", (1,), NO_VLLM),
    ("vllm_importance_sampling_correction", (True,), NO_VLLM),
    ("vllm_importance_sampling_mode", ("sequence_mask",), NO_VLLM),
    ("vllm_importance_sampling_clip_max", (3.0,), NO_VLLM),
    ("vllm_importance_sampling_clip_min", (None,), NO_VLLM),
    ("vllm_importance_sampling_cap", (None,), NO_VLLM),
)

# Of trl's ModelConfig
UNSUPPORTED_MODEL_OPTIONS = (("lora_task_type", ("CAUSAL_LM",), "the model writes text"),)


def refuse_unsupported(config, unsupported: tuple, method: str) -> None:
    """Raises `ValueError` for the first option of `unsupported` whose value in `config` is not an allowed one."""
    for name, allowed, reason in unsupported:
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(f"{name}={value!r} does not work with {method}: {reason}. Use {allowed[0]!r}")
