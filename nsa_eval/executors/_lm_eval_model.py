"""Answers requests with one of lm-eval's own model classes, made in this process.

No executor to choose: a model that names a class (`lm: local-completions`) is asked by it whatever the
config's executor is, since the class spreads its work itself (tensor_parallel_size, num_concurrent).
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsa_eval._paths import is_folder, user_path
from nsa_eval._words import said
from nsa_eval.config import EngineSpec, ModelSpec, Variant
from nsa_eval.errors import UserError
from nsa_eval.executors._worker import VariantFacts
from nsa_eval.store import AuditEvent, Response, ResponseStore

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from nsa_eval.engine import Emit, Request
    from nsa_models import Fingerprint


class LmEvalExecutor:
    """One model of lm-eval's, whose responses go into the driver's own shard."""

    def __init__(self, settings: EngineSpec, store: ResponseStore) -> None:
        """Args are those of `make_executor`."""
        self._settings, self._store = settings, store
        self._lm: LM | None = None
        self._spec: ModelSpec | None = None

    @property
    def lm(self) -> LM:
        """The model that is loaded."""
        assert self._lm is not None, "load comes first"
        return self._lm

    def load(self, checkpoint: ModelSpec) -> None:
        """Make the model that a config's entry names, in place of the one before.

        Raises:
            UserError: A package that the class needs isn't installed, or it refuses its arguments.
        """
        from lm_eval.api.registry import get_model

        self.close()
        name = checkpoint.lm
        assert name is not None, "models without lm are the other executors'"
        try:
            kind = get_model(name)
            parameters = _parameters(kind)
            arguments = {_path_argument(parameters): _folder(checkpoint.path), **checkpoint.lm_args}
            device = _default_device(parameters) if checkpoint.device == "auto" else checkpoint.device
            batch = self._settings.batch_size
            if device == "cpu" and batch == "auto":
                batch = 1  # lm-eval's search tries 64 full rows and ends where memory does
            additional = {"batch_size": batch} | ({"device": device} if device else {})
            self._lm = kind.create_from_arg_obj(arguments, additional)
        except ImportError as error:
            raise UserError(
                f"{checkpoint.name}: lm-eval's {name} needs a package that isn't installed: {said(error)} "
                f"(pip install lm-eval[{'api' if 'completions' in name else name}])"
            ) from error
        except Exception as error:  # whatever the class or its library raises
            raise UserError(f"{checkpoint.name}: lm-eval's {name} can't be made: {said(error)}") from error
        self._spec = checkpoint

    def use(self, variant: Variant) -> VariantFacts:
        """Say what is known of the model; there is no variant of it but itself."""
        from importlib.metadata import version

        from nsa_eval.engine import ModelFacts
        from nsa_models import RunningBackend

        assert self._spec is not None, "load comes first"
        lm, name = self.lm, self._spec.lm
        longest = getattr(lm, "max_length", None)
        detail = f"asked through lm-eval's {name}: cut prompts, BOS and assumed lengths aren't recorded"
        if getattr(lm, "tokenizer", None) is None:
            detail += "; no tokenizer, so no tokens are counted"
        return VariantFacts(
            model=ModelFacts(
                max_length=longest if isinstance(longest, int) else 0,
                parameters=0,
                dtype="unknown",
                device=str(getattr(lm, "device", None) or "elsewhere"),
                events=(AuditEvent(kind="unaudited", detail=detail),),
            ),
            backend=RunningBackend(name=str(name), package=f"lm_eval {version('lm_eval')}"),
            attention="unknown",
        )

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Answer the missing ones."""
        from nsa_eval.engine import ForeignAnswerer

        assert self._spec is not None, "load comes first"

        def finish(responses: Mapping[str, Response]) -> None:
            self._store.put_many(responses)
            emit(responses)

        ForeignAnswerer(self.lm, str(self._spec.lm)).answer(requests, missing, finish)

    def close(self) -> None:
        """Let the model go."""
        if self._lm is None:
            return
        self._lm = self._spec = None
        gc.collect()


def lm_fingerprint(model: ModelSpec) -> Fingerprint:
    """What stands for the weights of a model of lm-eval's: a local folder's own, else its name and arguments.

    Raises:
        ModelLoadError: As `nsa_models.fingerprint`.
    """
    import nsa_models

    if model.path.startswith("zoo:") or is_folder(user_path(model.path)):
        return nsa_models.fingerprint_of(model.path)
    named = json.dumps([model.lm, model.path, model.lm_args], sort_keys=True, default=str)
    total = hashlib.sha256(named.encode()).hexdigest()
    return nsa_models.Fingerprint(total=total, weights=total, config="", tokenizer="", code="")


def _folder(path: str) -> str:
    """A zoo's name as the folder that it stands for; other paths and names as they are."""
    if not path.startswith("zoo:"):
        return path
    import nsa_models

    return str(nsa_models.resolve(path))


def _parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """What a class takes, its own before its bases'."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        made = vars(base).get("__init__")
        if inspect.isfunction(made):
            found = {**inspect.signature(made).parameters, **found}
    return found


def _path_argument(parameters: Mapping[str, inspect.Parameter]) -> str:
    """By which argument a class takes its model: an API's is a `model`, a checkpoint is `pretrained`."""
    return "model" if "model" in parameters else "pretrained"


def _default_device(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """What a class has to be told of the device: nothing, but where it would go to CUDA and there is none."""
    import torch

    if "device" in parameters and parameters["device"].default == "cuda" and not torch.cuda.is_available():
        return "cpu"
    return None
