"""4DThinker for transformers: importing this registers the classes with transformers' Auto classes."""

import transformers

from .configuration_fourdthinker import FourDThinkerConfig
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import FourDThinkerProcessor
from .qa import VideoQA

transformers.AutoConfig.register(FourDThinkerConfig.model_type, FourDThinkerConfig)
for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    getattr(transformers, name).register(FourDThinkerConfig, FourDThinkerForConditionalGeneration)
transformers.AutoProcessor.register(FourDThinkerConfig, FourDThinkerProcessor)

__all__ = ["FourDThinkerConfig", "FourDThinkerForConditionalGeneration", "FourDThinkerProcessor", "VideoQA"]
