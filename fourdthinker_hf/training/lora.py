"""LoRA: which layers get adapters, and which weights are trained directly."""

from collections.abc import Collection

from peft import LoraConfig, PeftConfig, PeftModel

# The layers that get adapters unless `lora_target_modules` is given: the language model's linear layers.
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def latent_rows(config, modules_to_save: Collection[str] | None = None) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices` for the tokens of mental images, in those modules that are not in
    `modules_to_save` and so trained whole. A head that is tied to the embedding shares its rows."""
    rows = [config.latent_token_id, config.latent_start_id, config.latent_end_id]
    modules = ("embed_tokens",) if config.tie_word_embeddings else ("embed_tokens", "lm_head")
    return {name: rows for name in modules if name not in (modules_to_save or ())}


def prepare_peft_config(peft_config: PeftConfig | None, config) -> None:
    """Keeps a head that is tied to the embedding tied to it if the embedding is trained whole. Raises `ValueError` if
    that head is to be trained alone."""
    if not (isinstance(peft_config, LoraConfig) and config.tie_word_embeddings):
        return
    modules = peft_config.modules_to_save or ()
    if "lm_head" in modules:
        raise ValueError(
            "lora_modules_to_save=lm_head: this head shares the embedding's weights; embed_tokens trains both"
        )
    if "embed_tokens" in modules:
        peft_config.ensure_weight_tying = True


def check_frozen_tower(model) -> None:
    """Raises `ValueError` if the vision tower of `model` has weights that would be trained."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and ".visual." in name]
    if isinstance(model, PeftModel) and trained:
        raise ValueError(
            f"LoRA would train {trained[0]}, but the vision tower is frozen: in lora_target_modules and "
            "lora_modules_to_save, name layers of the language model"
        )
