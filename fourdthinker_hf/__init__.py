"""4DThinker for transformers: importing this registers the classes with transformers' Auto classes."""

from .auto_classes import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from .qa import VideoQA

__all__ = ["FourDThinkerConfig", "FourDThinkerForConditionalGeneration", "FourDThinkerProcessor", "VideoQA"]
