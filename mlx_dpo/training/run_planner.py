"""`plan`: what a run will take, from this data's real lengths and a few probe steps, before anything is trained."""

from __future__ import annotations

import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.evaluation.example_sets import Rows
from mlx_dpo.evaluation.scored_batch import OptimizerBatch, optimizer_batches
from mlx_dpo.forward.device import parse_memory, usable_memory
from mlx_dpo.forward.memory_model import BatchCost, MemoryModel, synthetic_pair
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run import TrainInputs, build_components
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer

MAX_PAIRS_READ = 20_000  # pairs whose lengths are looked at; of more, the steps of an even share
SAFE_MEMORY_SHARE = 0.7  # share of the memory there is that an estimate may take
PROBE_STEPS = 3  # optimizer steps that are tried


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        pairs, held_out, steps: as `train` will say them.
        pairs_read: pairs whose lengths are known; all, unless there are very many.
        prompt_tokens, completion_tokens, pair_slots: median and longest.
        micro_batches: in a step, mean.
        needed: share of the slots that go through the model that are no padding.
        shapes: distinct shapes of micro-batches. Nothing is compiled by shape, so that a new one costs no time.
        parts, recomputed: the model's feed-forwards and blocks, and how many the largest micro-batch computes again.
        sharing: how prompts go through the model.
        memory: bytes: `limit`, `held` (weights, optimizer state and gradients) and `peak`.
        measured: whether the peak was measured by a probe, or is an estimate of what does not fit.
        seconds: `reference` (once, unless it is cached), `training`, `evaluations`; empty where it does not fit.
        max_length_that_fits: the --max-length under which all would fit, where the longest pair does not.
    """

    pairs: int
    held_out: int
    steps: int
    pairs_read: int
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]
    pair_slots: tuple[int, int]
    micro_batches: float
    needed: float
    shapes: int
    parts: int
    recomputed: int
    sharing: str
    memory: dict[str, int]
    measured: bool
    seconds: dict[str, float]
    max_length_that_fits: int | None

    @property
    def fits(self) -> bool:
        """Whether the peak stays under the limit."""
        return self.memory["peak"] <= self.memory["limit"]

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "fits": self.fits}


@dataclass(frozen=True)
class SecondsPerToken:
    """Seconds a slot: of a forward pass with the head, and of a step with the reference known."""

    forward: float
    step: float


def estimate_run(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    valid_rows: Rows | None = None,
    listener: Listener | None = None,
) -> RunEstimate:
    """Measure what `train` with the same arguments will take; nothing is written, but for the reference's cache.

    A model given in memory is trained a few steps in place. Raises `UserError` as `train` does.
    """
    listener = listener or Listener()
    try:
        found = build_components(TrainInputs(config, model, tokenizer, rows, valid_rows, listener), {})
        with tempfile.TemporaryDirectory() as folder:
            return _measure(found.make_trainer(RunFolder(folder), Listener()), listener)
    finally:
        listener.on_run_end()


def _measure(trainer: Trainer, listener: Listener) -> RunEstimate:
    listener.on_preparing("Reading the lengths of the pairs")
    budget, config = trainer.budget, trainer.config
    limit = parse_memory(config.memory_limit) if config.memory_limit else usable_memory()
    batches = list(_batches(trainer))
    micros = [micro for batch in batches for micro in batch.micro_batches]
    works = [BatchCost.from_batch(micro, budget.network.sharing) for micro in micros]
    largest = max(micros, key=budget.peak_bytes)
    peak, seconds = int(budget.peak_bytes(largest)), dict[str, float]()
    if measured := peak <= max(limit, usable_memory()):
        listener.on_preparing("Trying a few steps")
        rates, peak = _probe(trainer, batches, largest)
        epoch = sum(work.tokens for work in works) * trainer.epochs.steps_per_epoch / len(batches)
        seconds = _seconds(trainer, rates, epoch)
    pairs = [pair for micro in micros for pair in _lengths(micro)]
    return RunEstimate(
        pairs=len(trainer.train_set.indices),
        held_out=_held_out(trainer),
        steps=trainer.steps,
        pairs_read=len(pairs),
        prompt_tokens=_median_and_longest([prompt for prompt, *_ in pairs]),
        completion_tokens=_median_and_longest([n for _, *completions in pairs for n in completions]),
        pair_slots=_median_and_longest([sum(lengths) - 1 for lengths in pairs]),
        micro_batches=len(micros) / len(batches),
        needed=sum(work.useful_tokens for work in works) / sum(work.tokens for work in works),
        shapes=len(set(works)),
        parts=budget.network.num_checkpointable,
        recomputed=budget.num_checkpointed(largest),
        sharing=budget.network.sharing.value,
        memory={"limit": limit, "held": budget.resident_bytes, "peak": peak},
        measured=measured,
        seconds=seconds,
        max_length_that_fits=None if peak <= limit else _max_length_that_fits(budget, limit),
    )


def _batches(trainer: Trainer) -> Iterator[OptimizerBatch]:
    """The optimizer batches of the first epoch that the run will do; of very many, an even share."""
    steps = min(trainer.steps, trainer.epochs.steps_per_epoch)
    every = max(1, steps * trainer.config.batch_size // MAX_PAIRS_READ)
    order = (trainer.epochs.batch(step) for step in range(0, steps, every))
    return optimizer_batches(trainer.train_set.examples, order, trainer.budget, trainer.loss)


def _probe(trainer: Trainer, batches: list[OptimizerBatch], largest: MicroBatch) -> tuple[SecondsPerToken, int]:
    """Seconds a slot, and the peak in bytes, of steps on the batch of the largest micro-batch and on middling ones."""
    sharing = trainer.budget.network.sharing
    slots = [sum(BatchCost.from_batch(micro, sharing).tokens for micro in batch.micro_batches) for batch in batches]
    by_size = sorted(range(len(batches)), key=slots.__getitem__)
    heaviest = next(i for i, batch in enumerate(batches) if largest in batch.micro_batches)
    tried = [heaviest, *(by_size[len(batches) * i // (PROBE_STEPS + 1)] for i in range(1, PROBE_STEPS + 1))]
    mx.reset_peak_memory()
    took = np.array([_timed(trainer, batches[i]) for i in tried])[1:]  # one warms up
    forward, step = took.sum(axis=0) / sum(slots[i] for i in tried[1:])
    return SecondsPerToken(float(forward), float(step)), mx.get_peak_memory()


def _timed(trainer: Trainer, batch: OptimizerBatch) -> tuple[float, float]:
    """Seconds of a batch's log-probs alone, and of an optimizer step with its reference known."""
    began = time.perf_counter()
    for micro in batch.micro_batches:
        trainer.policy.network.logps(micro)
    forward = time.perf_counter() - began
    trainer.step(batch)
    began = time.perf_counter()
    trainer.step(batch)
    return forward, time.perf_counter() - began


def _seconds(trainer: Trainer, rates: SecondsPerToken, epoch: float) -> dict[str, float]:
    """What the run's parts take; `epoch` is the slots of one."""
    every, steps = trainer.config.steps_per_eval, trainer.steps
    evaluations = 2 + ((steps - 1) // every if every else 0)
    held_out = epoch * _held_out(trainer) / len(trainer.train_set.indices)
    run = epoch * steps / trainer.epochs.steps_per_epoch
    return {
        "reference": rates.forward * min(run, epoch),
        "training": rates.step * run,
        "evaluations": rates.forward * held_out * (evaluations + 1),  # and the reference's, once
    }


def _held_out(trainer: Trainer) -> int:
    return 0 if trainer.held_out_set is None else len(trainer.held_out_set.indices)


def _lengths(micro: MicroBatch) -> list[tuple[int, ...]]:
    """Tokens of each example's prompt and completions."""
    sides = np.array([len(completion) for _, completion in micro.sequences]).reshape(micro.completions_per_example, -1)
    prompts = [len(prompt) for prompt, _ in micro.sequences]
    return [(prompt, *map(int, lengths)) for prompt, lengths in zip(prompts, sides.T, strict=False)]


def _median_and_longest(lengths: list[int]) -> tuple[int, int]:
    return int(np.median(lengths)), max(lengths)


def _max_length_that_fits(budget: MemoryModel, limit: int) -> int:
    """Tokens of prompt and completion, for a pair whose prompt is twice as long as each of its completions."""
    sure = budget.resident_bytes + SAFE_MEMORY_SHARE * (limit - budget.resident_bytes)

    def too_long(length: int) -> bool:
        pair = synthetic_pair(2 * length // 3, length // 3)
        return budget.num_checkpointed(pair) == budget.network.num_checkpointable and budget.peak_bytes(pair) > sure

    lengths = range(64, 32_768, 64)
    fitting = bisect_right(lengths, False, key=too_long)
    return lengths[fitting - 1] if fitting else 0
