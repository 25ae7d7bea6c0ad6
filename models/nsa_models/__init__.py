"""NSA and full-attention decoders for transformers, their cache, and a zoo of trained twins.

Importing it registers the decoder with transformers' Auto classes, whichever of the two is imported first. So
nothing here is imported lazily: transformers has no way to register a class that isn't there yet.
"""

from nsa_kernels import Compilations, compilations
from nsa_models.cache import NSACache
from nsa_models.checkpoints import ModelLoadError, ZooEntry, local_folder, resolve, zoo
from nsa_models.configuration import NSADecoderConfig
from nsa_models.fingerprints import Fingerprint, fingerprint, fingerprint_of
from nsa_models.imports import Choices, Conversion, convert
from nsa_models.loading import import_notes, load_config, load_model, load_tokenizer
from nsa_models.modeling import NSADecoderForCausalLM, NSADecoderModel
from nsa_models.static import DecodeGraph, StaticDecoder, why_not_captured
from nsa_models.trained import TrainedSparsity, trained_sparsity
from nsa_models.variants import (
    RunningBackend,
    changed_fields,
    config_with,
    plain_fields,
    running_backend,
    with_fields,
)
from nsa_models.warming import warm_up

__all__ = [
    "Choices",
    "Compilations",
    "Conversion",
    "DecodeGraph",
    "Fingerprint",
    "ModelLoadError",
    "NSACache",
    "NSADecoderConfig",
    "NSADecoderForCausalLM",
    "NSADecoderModel",
    "RunningBackend",
    "StaticDecoder",
    "TrainedSparsity",
    "ZooEntry",
    "changed_fields",
    "compilations",
    "config_with",
    "convert",
    "fingerprint",
    "fingerprint_of",
    "import_notes",
    "load_config",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "plain_fields",
    "resolve",
    "running_backend",
    "trained_sparsity",
    "warm_up",
    "why_not_captured",
    "with_fields",
    "zoo",
]
