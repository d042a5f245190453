"""Training of 4DThinker on TRL: DIFT, supervised imagery."""

from .collator import DIFTCollator
from .dift import DIFTConfig, DIFTTrainer

__all__ = ["DIFTCollator", "DIFTConfig", "DIFTTrainer"]
