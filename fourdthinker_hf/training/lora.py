"""LoRA: which layers get adapters, and which rows of the embedding are trained directly."""

# The layers that get adapters unless `lora_target_modules` is given: the language model's linear layers.
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def latent_rows(config) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices` for the tokens of mental images. A head that is tied to the embedding shares
    its rows."""
    rows = [config.latent_token_id, config.latent_start_id, config.latent_end_id]
    return {name: rows for name in (("embed_tokens",) if config.tie_word_embeddings else ("embed_tokens", "lm_head"))}
