"""Load any transformers causal LM for evaluation, or say plainly why it can't be evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from nsa_kernels import BACKENDS, BackendUnavailableError, get_backend
from nsa_models.checkpoints import ModelLoadError, local_folder
from nsa_models.configuration import NSADecoderConfig
from nsa_models.imports import Imported, foreign_type, imported, unread_notes
from nsa_models.lower_right import prefer_lower_right
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.shortage import is_out_of_memory
from nsa_models.weight_files import check_no_adapter, check_weight_files, some_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Any one of these is a tokenizer of some kind; transformers' own message on none at all runs to a page.
_TOKENIZER_FILES = ("tokenizer*", "tokenization*.py", "vocab*", "*.model", "*.tiktoken")
_SHARED_LAYERS = 512
"""Layers that may share one set of weights; beyond, each has a tensor of its own."""


def load_config(
    spec: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Read a checkpoint's configuration, without its weights; that of another trainer's NSA as it is read.

    Raises:
        ModelLoadError: It isn't there, can't be read, or needs code of its own and that wasn't allowed.
    """
    folder = local_folder(spec, revision=revision, weights=False)
    return _read_config(spec, folder, trust_remote_code)


def load_tokenizer(
    spec: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        ModelLoadError: There is none, or it can't be read.
    """
    folder = local_folder(spec, revision=revision, weights=False)
    check_no_adapter(spec, folder)
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise ModelLoadError(
            f"{spec}: no tokenizer in {folder}; put its files (tokenizer.json, ...) beside the weights"
        )
    _check_plain(spec, folder, *_TOKENIZER_FILES, "special_tokens_map.json", "chat_template*")
    options: dict[str, Any] = {}
    if foreign_type(folder, trust_remote_code=trust_remote_code):
        options["config"] = NSADecoderConfig()  # transformers knows no config by that name, and needs one
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and Rust errors here
        if "trust_remote_code" in str(error):
            raise _needs_code(spec, "tokenizer") from error
        _read_config(spec, folder, trust_remote_code)  # what is wrong with the config shows here first
        raise ModelLoadError(
            f"{spec}: the tokenizer in {folder} can't be loaded: {_first_line(error)}"
        ) from error


def load_model(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    backend: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal LM in evaluation mode and check that its weights are whole.

    Args:
        spec: "zoo:NAME", a folder, or a hub id. NSA checkpoints of other trainers (`nsa_models.imports`) are
            converted as they are read.
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own on a GPU, float32 on a CPU
            (where half precision is slower and less exact).
        device: "cpu", "cuda", "cuda:1", ..., or "auto": CUDA where there is one.
        backend: For our decoders the attention's backend in nsa_kernels; other models take no notice of those
            names, so that one setting serves a mixed run, and read any other as transformers'
            attn_implementation; "auto" leaves the choice to them, but on a GPU lets those with `sdpa` read
            chunks without a mask (`lower_right.py`).
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Run the modelling code that comes with the checkpoint.

    Returns:
        The model on its device, in eval mode.

    Raises:
        ModelLoadError: Not there, pickled weights only, weight files outside the folder, an adapter beside
            the model, truncated or mismatched safetensors, missing, integer or NaN weights, unknown
            architecture, code of its own without leave, unknown dtype, device or backend.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelLoadError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    target = _device(device)
    folder = local_folder(spec, revision=revision)
    check_no_adapter(spec, folder)
    foreign = _foreign(spec, folder, trust_remote_code)
    config = _read_config(spec, folder, trust_remote_code) if foreign is None else foreign.config
    tensors = check_weight_files(spec, folder, quantized=bool(getattr(config, "quantization_config", None)))
    if foreign is None:
        _check_layers(spec, config, tensors)
    else:
        foreign.check()
    options: dict[str, Any] = {}
    if isinstance(config, NSADecoderConfig):
        _check_backend(backend, config)
        config.nsa_backend = backend
    elif backend != "auto" and backend not in BACKENDS:
        options["attn_implementation"] = backend
    wanted: str | torch.dtype = DTYPES.get(dtype, "auto")
    if dtype == "auto" and target.type == "cpu":
        wanted = torch.float32
    try:
        with _quiet_transformers():
            if foreign is not None:
                model, info = _load_foreign(foreign, wanted)
            else:
                model, info = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=wanted,
                    use_safetensors=True,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported by _check_loading, in one message
                    **options,
                )
    except ModelLoadError:
        raise
    except Exception as error:  # OSError, ValueError, RuntimeError, ImportError, SafetensorError ...
        raise ModelLoadError(f"{spec}: the model can't be loaded: {_first_line(error)}") from error
    _check_loading(spec, info)
    _check_finite(spec, model)
    try:
        model = model.to(target).eval()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{spec}: {target} has no room for its weights, {model.get_memory_footprint() / 2**30:.1f} GiB: "
            f"{_first_line(error)}. See what else runs there, or load it in a narrower dtype"
        ) from error
    if backend == "auto" and target.type == "cuda" and not isinstance(config, NSADecoderConfig):
        prefer_lower_right(model)
    return model


def import_notes(
    spec: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[str, ...]:
    """What was decided in reading a checkpoint that its files don't say, and weights that stay unread.

    Raises:
        ModelLoadError: As `load_config`.
    """
    folder = local_folder(spec, revision=revision)
    found = _foreign(spec, folder, trust_remote_code)
    return found.notes if found else unread_notes(spec, folder)


def _foreign(spec: str, folder: Path, trust_remote_code: bool) -> Imported | None:
    if foreign_type(folder, trust_remote_code=trust_remote_code) is None:
        return None
    return imported(spec, folder)


def _load_foreign(found: Imported, dtype: str | torch.dtype) -> tuple[NSADecoderForCausalLM, dict[str, Any]]:
    loaded: tuple[NSADecoderForCausalLM, dict[str, Any]] = NSADecoderForCausalLM.from_pretrained(
        None, config=found.config, dtype=dtype, state_dict=found.state_dict(), output_loading_info=True
    )
    loaded[0].config._name_or_path = loaded[0].name_or_path = str(found.folder)
    if (found.folder / "generation_config.json").is_file():
        loaded[0].generation_config = GenerationConfig.from_pretrained(found.folder)
    return loaded


def _read_config(spec: str, folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    foreign = _foreign(spec, folder, trust_remote_code)
    if foreign is not None:
        return foreign.config
    try:
        with _quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise _needs_code(spec, "modelling") from error
        raise ModelLoadError(f"{spec}: {folder}/config.json can't be used: {_first_line(error)}") from error


def _needs_code(spec: str, kind: str) -> ModelLoadError:
    return ModelLoadError(
        f"{spec}: the checkpoint needs {kind} code of its own; read it, then allow it by name with "
        "trust_remote_code: true"
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or load reports on stderr meanwhile; what a report says is raised as one error."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_backend(name: str, config: NSADecoderConfig) -> None:
    if name == "auto":
        return
    try:
        get_backend(name, config.geometry if config.attention == "nsa" else None)
    except (ValueError, BackendUnavailableError) as error:
        raise ModelLoadError(str(error)) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"device {name!r} was asked for, but torch sees no CUDA device here; use cpu or auto"
        )
    index = device.index or 0
    if device.type == "cuda" and index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    if device.type == "meta":
        raise ModelLoadError("device must be auto, cpu, cuda or cuda:N; meta holds no weights to evaluate")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # each device its own way
            raise ModelLoadError(
                f"device {name!r} was asked for, but torch has none here; use cpu"
            ) from error
    return device


def _check_plain(spec: str, folder: Path, *patterns: str) -> None:
    """Every file that would be read is one: a link to nothing, or a pipe that would be waited on, is none."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if not path.is_file() and not path.is_dir():
            kind = "a link to a file that isn't there" if path.is_symlink() else "no plain file"
            raise ModelLoadError(f"{spec}: {path.name} is {kind}; copy or download it again")


def _check_layers(spec: str, config: PreTrainedConfig, tensors: int) -> None:
    """No more layers than there can be weights of: building a million of them takes hours before it fails."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int):
        return
    most = max(_SHARED_LAYERS, tensors)
    if not 1 <= layers <= most:
        raise ModelLoadError(
            f"{spec}: config.json says num_hidden_layers {layers:,}; expected 1 to {most:,}, as the weight "
            f"files hold {tensors:,} tensors"
        )


def _check_loading(spec: str, info: dict[str, Any]) -> None:
    mismatched = sorted(info.get("mismatched_keys", ()))
    if mismatched:
        shapes = [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in mismatched]
        raise ModelLoadError(f"{spec}: weights of another shape than config.json says: {some_of(shapes)}")
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelLoadError(
            f"{spec}: the weight files lack {some_of(missing)}, which would be evaluated at random values; "
            "the checkpoint is incomplete, or of another architecture than config.json says"
        )


def _check_finite(spec: str, model: PreTrainedModel) -> None:
    bad = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise ModelLoadError(
            f"{spec}: NaN or infinite weights in {some_of(bad)}; scores from it would mean nothing"
        )


def _first_line(error: BaseException) -> str:
    """An error's first line, and the next while a line only announces it."""
    if isinstance(error, KeyError):  # its text is the key alone
        return f"KeyError: {error}"
    said: list[str] = []
    for line in str(error).splitlines():
        if line.strip():
            said.append(line.strip())
            if not line.rstrip().endswith(":"):
                break
    return " ".join(said) or type(error).__name__
