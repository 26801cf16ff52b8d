"""Counts what a run in this process does: tokens through the model by kind, multiply-adds, wall and processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn
from model_products import ModelSize, Work, batch_work, sampling_work

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_model import RewardModel
from mlx_dpo.forward.reward_network import RewardNetwork
from mlx_dpo.reference.reference_policy import SharedNetworkReference
from mlx_dpo.training.checkpoint_saver import CheckpointSaver
from mlx_dpo.training.events import RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.on_policy import rollout_sampler

KINDS = {  # of tokens, by what they are run for
    "sampling": "generated",
    "policy": "forward",
    "reference": "forward",
    "reward model": "forward",
    "update": "forward+backward",
}


class RunClock:
    """Wall and processor seconds, without those spent within `paused`."""

    def __init__(self) -> None:
        self._start, self._lost = self._now(), (0.0, 0.0)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Since the start."""
        return tuple(now - start - lost for now, start, lost in zip(self._now(), self._start, self._lost, strict=True))  # type: ignore[return-value]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done within the context."""
        before = self._now()
        try:
            yield
        finally:
            spent = (now - start for now, start in zip(self._now(), before, strict=True))
            self._lost = tuple(lost + more for lost, more in zip(self._lost, spent, strict=True))  # type: ignore[assignment]


@dataclass
class ComputeMeter(Listener):
    """Counts a run from its first step on: attach it as a listener, and train within `counting`.

    Attributes:
        work: by what it is done for, see `KINDS`.
        steps: a line for each optimizer step: what was done up to then.
        max_recomputed: most modules that a backward pass has computed again; these are not counted.
    """

    model: Any = None
    work: dict[str, Work] = field(default_factory=lambda: {name: Work() for name in KINDS})
    steps: list[dict[str, Any]] = field(default_factory=list)
    max_recomputed: int = 0
    _clock: RunClock = field(default_factory=RunClock)
    _depth: int = 1  # of contexts in which nothing is counted
    _purpose: str = "policy"

    def on_run_start(self, plan: RunPlan) -> None:
        self._depth, self._clock = 0, RunClock()

    def on_step(self, step: int, metrics: Any) -> None:
        with self._clock.paused():
            wall, cpu = self._clock.seconds()
            tokens = {name: work.prompt_tokens + work.tokens for name, work in self.work.items()}
            self.steps.append({"step": step, "tokens": tokens, "products": self.products(), "wall": wall, "cpu": cpu})

    def products(self) -> dict[str, int]:
        """Multiply-adds so far, by what they are done for."""
        size = ModelSize.from_model(self.model)
        return {name: size.products(work, backward=name == "update") for name, work in self.work.items()}

    def add(self, purpose: str, work: Work) -> None:
        """Count some work, unless it belongs to no run."""
        if not self._depth:
            self.work[purpose] += work

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave out what is done within the context: loading a model, writing a checkpoint."""
        self._depth += 1
        try:
            with self._clock.paused():
                yield
        finally:
            self._depth -= 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Watch the places where tokens go through a model."""
        with ExitStack() as stack:
            for owner, name, wrapper in (
                (Network, "logps", self._logps),
                (Network, "trace", self._trace),
                (SharedNetworkReference, "_logps", self._reference),
                (rollout_sampler, "sample_completions", self._sample),
                (CheckpointSaver, "save", self._without_counting),
                (RewardModel, "load", self._without_counting),
            ):
                stack.enter_context(_replaced(owner, name, wrapper))
            yield

    def _without_counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self.uncounted():
                return function(*args, **options)

        return call

    def _logps(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(network: Network, batch: MicroBatch, **options: Any) -> Any:
            purpose = "reward model" if isinstance(network, RewardNetwork) else self._purpose
            self.add(purpose, batch_work(network, batch))
            return function(network, batch, **options)

        return call

    def _trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(network: Network, batch: MicroBatch, num_checkpointed: int = 0, **options: Any) -> Any:
            self.model, self.max_recomputed = network.model, max(self.max_recomputed, num_checkpointed)
            self.add("update", batch_work(network, batch))
            return function(network, batch, num_checkpointed, **options)

        return call

    def _reference(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._purpose = "reference"
            try:
                return function(*args)
            finally:
                self._purpose = "policy"

        return call

    def _sample(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: nn.Module, tokenizer: Any, prompts: Any, *args: Any, **options: Any) -> Any:
            completions = function(model, tokenizer, prompts, *args, **options)
            self.add("sampling", sampling_work(prompts, completions))
            return completions

        return call


@contextmanager
def _replaced(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Wrap a function of a class or a module within the context."""
    before = vars(owner)[name]
    is_class_method = isinstance(before, classmethod)
    setattr(owner, name, wrapper(getattr(owner, name) if is_class_method else before))
    try:
        yield
    finally:
        setattr(owner, name, before)
