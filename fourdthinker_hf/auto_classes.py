"""The classes of 4DThinker. Importing them registers them with transformers' Auto classes."""

import transformers

from .configuration_fourdthinker import FourDThinkerConfig
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import FourDThinkerProcessor

transformers.AutoConfig.register(FourDThinkerConfig.model_type, FourDThinkerConfig)
for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    getattr(transformers, name).register(FourDThinkerConfig, FourDThinkerForConditionalGeneration)
transformers.AutoProcessor.register(FourDThinkerConfig, FourDThinkerProcessor)
