"""Counts what a run in this process does: tokens through the model by kind, multiply-adds, wall and processor time.

A multiply-add is one of a product with a weight matrix, of a LoRA factor, of attention's scores and sums, or of the
vocabulary's head; they are counted from the shapes that go through the model, padding included, and equal those of
mlx's own graph (tests/benchmarks/test_pipeline_costs.py). What frozen weights save is counted as saved: their own
gradient is never computed, so that a product costs twice its forward pass in training, and not three times. Norms,
softmaxes, value and reward heads (one product with a vector) and the optimizer are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.activation_memory import BatchCost
from mlx_dpo.forward.network import Network, PromptSharing
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
ATTENTION_PRODUCTS = 2  # scores, and the weighted sum of values
KEYS_AND_VALUES, LAYER_INPUTS = ("k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")


@dataclass
class Work:
    """What has gone through the model for one purpose.

    Attributes:
        prompt_tokens: of shared or cached prompts, of whose last layer only keys and values are computed.
        tokens: all others.
        head_tokens: tokens whose logits are computed.
        prompt_scores: query-key products of one attention head within the prompts.
        scores: the others.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    head_tokens: int = 0
    prompt_scores: int = 0
    scores: int = 0

    @classmethod
    def from_batch(cls, batch: MicroBatch, sharing: PromptSharing, head_tokens: int) -> Work:
        """The work of a micro-batch's forward pass."""
        cost = BatchCost.from_batch(batch, sharing)
        if sharing is PromptSharing.NONE:
            return cls(0, cost.tokens, head_tokens, 0, cost.attention_scores)
        shared = batch.shared_prompts
        prompt = shared.prompts.shape[1]
        scores = sum(group.inputs.size * (prompt + group.inputs.shape[1]) for group in shared.completion_groups)
        tokens = shared.prompts.size
        return cls(tokens, cost.tokens - tokens, head_tokens, cost.attention_scores - scores, scores)

    @classmethod
    def of_sampling(cls, prompt_tokens: int, completion_tokens: list[int]) -> Work:
        """The work of sampling completions of a prompt; the last prompt token is the first input of each."""
        prefix, total = prompt_tokens - 1, sum(completion_tokens)
        scores = sum(count * prefix + count * (count + 1) // 2 for count in completion_tokens)
        return cls(prefix, total, total, prefix * prefix, scores)

    def __iadd__(self, other: Work) -> Work:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class ModelSize:
    """Multiply-adds of a model with an adapter, for one token unless noted.

    Attributes:
        frozen: products with frozen weights, without the head.
        lora: products with LoRA's factors.
        frozen_last, lora_last: of these, what prompts need not compute in the last layer.
        frozen_first, lora_first: of these, what reads the first layer's inputs, for which nothing wants a gradient.
        head: products with the vocabulary.
        attention: for one query-key pair in one layer, all heads together.
        layers: number of layers.
    """

    frozen: int
    lora: int
    frozen_last: int
    lora_last: int
    frozen_first: int
    lora_first: int
    head: int
    attention: int
    layers: int

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelSize:
        """Measure a llama-like model of mlx-lm; its linear layers may have LoRA or none."""
        layers = model.layers
        inputs = [_linear_layers(layer) for layer in layers]
        frozen = [{name: a * b for name, (a, b, _) in sizes.items()} for sizes in inputs]
        lora = [{name: rank * (a + b) for name, (a, b, rank) in sizes.items()} for sizes in inputs]

        def total(sizes: dict[str, int], names: tuple[str, ...] = ("",), inverse: bool = False) -> int:
            return sum(count for name, count in sizes.items() if name.endswith(names) is not inverse)

        args = model.args
        head_dim = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
        return cls(
            frozen=sum(map(total, frozen)),
            lora=sum(map(total, lora)),
            frozen_last=total(frozen[-1], KEYS_AND_VALUES, inverse=True),
            lora_last=total(lora[-1], KEYS_AND_VALUES, inverse=True),
            frozen_first=total(frozen[0], LAYER_INPUTS),
            lora_first=total(
                {name: rank * width for name, (width, _, rank) in inputs[0].items()}, LAYER_INPUTS
            ),
            head=args.vocab_size * args.hidden_size,
            attention=ATTENTION_PRODUCTS * args.num_attention_heads * head_dim,
            layers=len(layers),
        )

    def products(self, work: Work, backward: bool) -> int:
        """Multiply-adds of some work, with its backward pass or without."""
        tokens = work.prompt_tokens + work.tokens
        frozen = tokens * self.frozen - work.prompt_tokens * self.frozen_last
        lora = tokens * self.lora - work.prompt_tokens * self.lora_last
        scores = self.layers * work.scores + (self.layers - 1) * work.prompt_scores
        attention, head = scores * self.attention, work.head_tokens * self.head
        if not backward:
            return frozen + lora + attention + head
        return 2 * frozen + 3 * lora + 3 * attention + 2 * head - tokens * (self.frozen_first + self.lora_first)


def _linear_layers(layer: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and LoRA's rank (0 for none) of each linear layer of a block."""
    sizes: dict[str, tuple[int, int, int]] = {}
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            outputs, inputs = module.weight.shape
            if isinstance(module, nn.QuantizedLinear):
                inputs = inputs * 32 // module.bits
            owner = name.removesuffix(".linear")
            wrapper = dict(layer.named_modules()).get(owner)
            rank = wrapper.lora_a.shape[1] if owner != name and wrapper is not None and "lora_a" in wrapper else 0
            sizes[owner] = (inputs, outputs, rank)
    return sizes


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


def batch_work(network: Network, batch: MicroBatch) -> Work:
    """The work of a network's forward pass."""
    if isinstance(network, RewardNetwork):
        return Work.from_batch(batch.last_tokens, network.sharing, 0)
    return Work.from_batch(batch, network.sharing, int(batch.trained_lengths.sum()))


def sampling_work(prompts: Any, completions: Any) -> Work:
    """The work of sampling completions of each prompt, without the padding beside shorter prompts."""
    work = Work()
    for prompt, of_prompt in zip(prompts, completions, strict=True):
        work += Work.of_sampling(len(prompt), [len(item.token_ids) for item in of_prompt])
    return work


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
