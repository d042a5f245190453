"""4DThinker for transformers: importing this registers the classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .configuration_fourdthinker import FourDThinkerConfig
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import FourDThinkerProcessor
from .qa import VideoQA

AutoConfig.register(FourDThinkerConfig.model_type, FourDThinkerConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(FourDThinkerConfig, FourDThinkerForConditionalGeneration)
AutoProcessor.register(FourDThinkerConfig, FourDThinkerProcessor)

__all__ = [
    "FourDThinkerConfig",
    "FourDThinkerForConditionalGeneration",
    "FourDThinkerProcessor",
    "VideoQA",
]
