"""Training of 4DThinker with TRL: DIFT (supervised training of text and latents) and 4DRL (GRPO)."""

from .collator import DIFTCollator
from .dataset import check_records, question_dataset, record_dataset
from .dift_config import DIFTConfig
from .dift_trainer import DIFTTrainer
from .grpo_config import FourDRLConfig
from .grpo_trainer import FourDRLTrainer

__all__ = [
    "DIFTCollator",
    "DIFTConfig",
    "DIFTTrainer",
    "FourDRLConfig",
    "FourDRLTrainer",
    "check_records",
    "question_dataset",
    "record_dataset",
]
