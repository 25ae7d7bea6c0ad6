"""Answers requests with workers of a Ray cluster: on the GPUs of this machine, or of several.

A worker is a process with a checkpoint and a shard of the store. The driver hands it a piece of requests at a
time and reads what it wrote; a worker that dies costs the replies it was working on, and is replaced.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval.config import EngineSpec, ExecutorSpec, ModelSpec, Variant
from nsa_eval.errors import UserError
from nsa_eval.executors._worker import VariantFacts, Worker
from nsa_eval.store import Response, ResponseStore, Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsa_eval.engine import Emit, Request

_CPU_WORKERS = 2
"""Workers where there is no GPU and the config names no number."""
_TRIES = 3
"""How often a piece may lose its worker before the run gives up: something in it kills them."""
_NOT_SEEN = (
    "a worker stored responses that this process can't see in {folder}: the run's folder has to be on a disk "
    "that all machines of the cluster see under the same path"
)


class ShardWorker:
    """What runs in a worker's process."""

    def __init__(self, settings: EngineSpec, shard: str) -> None:
        """Args: the config's `engine`, and the worker's file without its ending."""
        self._worker = Worker(settings)
        # Told apart from every earlier worker of the same run, which may not be quite dead yet.
        name = f"{shard}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._path = Path(name)
        self._shard: Shard | None = None

    def load(self, checkpoint: ModelSpec) -> str:
        """Load a checkpoint; says on which type of device it is."""
        self._worker.load(checkpoint)
        return self._worker.device

    def use(self, variant: Variant) -> VariantFacts:
        """Become a variant of the loaded checkpoint."""
        return self._worker.use(variant)

    def answer(self, requests: Sequence[Request], missing: Collection[str]) -> Iterator[int]:
        """Answer a piece; gives the number of responses just stored, batch after batch."""
        import queue
        import threading

        if self._shard is None:
            self._shard = Shard.open(self._path)
        shard = self._shard
        told: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

        def store(responses: Mapping[str, Response]) -> None:
            shard.append(responses)
            told.put(len(responses))

        def work() -> None:
            try:
                self._worker.answer(requests, missing, store)
            except BaseException as error:
                told.put(error)
            else:
                told.put(None)

        # The engine calls back and a generator gives: a thread between the two.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        thread.join()

    def pid(self) -> int:
        """The worker's process."""
        return os.getpid()


class RayExecutor:
    """Several workers, each with the same checkpoint, that share the pieces of a call."""

    def __init__(self, spec: ExecutorSpec, settings: EngineSpec, store: ResponseStore) -> None:
        """Start or join a cluster.

        Raises:
            UserError: Ray isn't installed, or there is no cluster at the address.
        """
        self._ray = _import_ray()
        errors = self._ray.exceptions
        self._lost = (errors.RayActorError, errors.OutOfMemoryError, errors.WorkerCrashedError)
        self._store = store
        self._settings = settings
        self._checkpoint: ModelSpec | None = None
        self._variant: Variant | None = None
        self._device = "cpu"
        local = spec.address == "local"
        options: dict[str, Any] = {"num_cpus": spec.workers or _CPU_WORKERS} if local else {}
        try:
            self._ray.init(
                address=spec.address,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level="ERROR",
                **options,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"executor: no Ray cluster at address {spec.address!r} ({str(error).splitlines()[0]}): give "
                "local, auto or HOST:PORT"
            ) from error
        gpus = float(self._ray.cluster_resources().get("GPU", 0))
        each = spec.gpus_per_worker if spec.gpus_per_worker is not None else float(gpus > 0)
        if each > gpus:
            self.close()
            raise UserError(f"executor: a worker is to have {each:g} GPUs, and the cluster has {gpus:g}")
        count = spec.workers or (int(gpus / each) if each else _CPU_WORKERS)
        if each and count * each > gpus:
            self.close()
            raise UserError(
                f"executor: {count} workers of {each:g} GPUs each need more than the {gpus:g} that there are"
            )
        self._kind = self._ray.remote(num_cpus=1 if local else 0, num_gpus=each)(ShardWorker)
        self._workers: list[Any] = [self._start() for _ in range(count)]

    def load(self, checkpoint: ModelSpec) -> None:
        """Load a checkpoint on every worker, in place of the one before."""
        self._checkpoint, self._variant = checkpoint, None
        self._device = str(self._all("load", checkpoint)[0])

    def use(self, variant: Variant) -> VariantFacts:
        """Become a variant of the loaded checkpoint, on every worker."""
        self._variant = variant
        facts: VariantFacts = self._all("use", variant)[0]
        return facts

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Hand pieces to workers as they become free, and replace those that die."""
        from nsa_eval.executors._pieces import pieces

        left = deque(pieces(requests, self._device))
        tries: dict[int, int] = {}
        wanted = set(missing)
        idle = list(range(len(self._workers)))
        running: dict[Any, tuple[int, list[Request]]] = {}

        def take() -> None:
            new = {key: response for key, response in self._store.refresh().items() if key in wanted}
            wanted.difference_update(new)
            if new:
                emit(new)

        while left or running:
            while left and idle:
                piece = left.popleft()
                waiting = {request.key for request in piece} & wanted
                if not waiting:
                    continue
                index = idle.pop()
                stream = self._workers[index].answer.options(num_returns="streaming").remote(piece, waiting)
                running[stream] = (index, piece)
            if not running:
                break
            [stream], _ = self._ray.wait([*running], num_returns=1)
            index, piece = running[stream]
            try:
                self._ray.get(next(stream))
            except StopIteration:
                del running[stream]
                idle.append(index)
            except self._lost:
                del running[stream]
                tries[id(piece)] = tries.get(id(piece), 0) + 1
                if tries[id(piece)] >= _TRIES:
                    raise UserError(
                        f"a worker was lost {_TRIES} times with the same requests (the first is of "
                        f"{piece[0].origin}): look at its memory. Responses finished before are stored"
                    ) from None
                self._replace(index)
                idle.append(index)
                left.appendleft(piece)
            except self._ray.exceptions.RayTaskError as error:
                take()
                raise error.cause from None
            take()
        if wanted:
            raise UserError(_NOT_SEEN.format(folder=self._store.path.parent))

    def close(self) -> None:
        """Let the workers go, and the cluster if it was started here."""
        self._ray.shutdown()

    def _start(self) -> Any:  # noqa: ANN401  (an actor's handle)
        shard = self._store.path.with_suffix("").resolve()
        return self._kind.remote(self._settings, str(shard))

    def _replace(self, index: int) -> None:
        self._workers[index] = self._start()
        for name, argument in (("load", self._checkpoint), ("use", self._variant)):
            if argument is not None:
                self._get([getattr(self._workers[index], name).remote(argument)])

    def _all(self, name: str, *arguments: object) -> list[Any]:
        """Call every worker; one that died while it was idle is replaced and asked again."""
        for attempt in range(_TRIES):
            calls = [getattr(worker, name).remote(*arguments) for worker in self._workers]
            try:
                return self._get(calls)
            except self._lost:
                if attempt == _TRIES - 1:
                    raise UserError("workers die while they load the model: look at their memory") from None
                self._revive()
        raise AssertionError("unreachable")

    def _revive(self) -> None:
        for index, worker in enumerate(self._workers):
            try:
                self._ray.get(worker.pid.remote())
            except self._lost:
                self._replace(index)

    def _get(self, calls: list[Any]) -> list[Any]:
        try:
            found: list[Any] = self._ray.get(calls)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return found


def make(spec: ExecutorSpec, *, settings: EngineSpec, store: ResponseStore) -> RayExecutor:
    """The executor of `executor: {kind: ray}`."""
    return RayExecutor(spec, settings, store)


def _import_ray() -> Any:  # noqa: ANN401  (the module)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anybody about a user's runs
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("executor: kind ray needs Ray: pip install 'nsa-eval[ray]'") from None
    return ray
