"""Training of 4DThinker on TRL: DIFT, supervised imagery."""

from .collator import DIFTCollator
from .dataset import record_dataset
from .dift import DIFTTrainer, last_checkpoint
from .dift_config import DIFTConfig

__all__ = ["DIFTCollator", "DIFTConfig", "DIFTTrainer", "last_checkpoint", "record_dataset"]
