"""Training of 4DThinker on TRL: DIFT, supervised imagery, and 4DRL, reinforcement of what answers right."""

from .collator import DIFTCollator
from .dataset import question_dataset, record_dataset
from .dift_config import DIFTConfig
from .dift_trainer import DIFTTrainer, last_checkpoint
from .grpo_config import FourDRLConfig
from .grpo_trainer import FourDRLTrainer

__all__ = [
    "DIFTCollator",
    "DIFTConfig",
    "DIFTTrainer",
    "FourDRLConfig",
    "FourDRLTrainer",
    "last_checkpoint",
    "question_dataset",
    "record_dataset",
]
