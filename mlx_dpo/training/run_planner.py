"""Estimate the time and memory of a run (`mlx-dpo plan`) from the lengths of the data and a few trial steps."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.data.prefetching import prefetch
from mlx_dpo.evaluation.eval_snapshot import NUM_KL_EXAMPLES
from mlx_dpo.evaluation.example_sets import HELD_OUT, Rows
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch
from mlx_dpo.forward.activation_memory import BatchCost
from mlx_dpo.forward.device import usable_memory
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.reference.reference_policy import NoReference, SharedNetworkReference
from mlx_dpo.sampling.batched_sampling import DEFAULT_BATCH_SIZE
from mlx_dpo.sampling.sampling_memory import sampling_bytes
from mlx_dpo.training.components import TrainComponents, TrainInputs, build_components
from mlx_dpo.training.events import Preparing, RunEnd
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.on_policy.on_policy_setup import JudgeOrFunction, Prompts
from mlx_dpo.training.policy_gradient.policy_gradient_checks import completions_per_prompt
from mlx_dpo.training.policy_gradient.policy_gradient_setup import planned_source
from mlx_dpo.training.policy_setup import memory_limit
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer

MAX_PAIRS_READ = 20_000  # pairs whose lengths are read; of more, every n-th step
TRIAL_MICRO_BATCHES = 2  # of middling size that are timed
TRIAL_SECONDS = 35  # after which no other is begun

_JSON_KEYS = {  # of attributes that have another name
    "tokens_per_pair": "pair_slots",
    "useful_share": "needed",
    "num_checkpointable": "parts",
    "num_checkpointed": "recomputed",
    "prompt_sharing": "sharing",
    "is_measured": "measured",
}


@dataclass(frozen=True)
class RunEstimate:
    """The estimated time and memory of a run, and the lengths of its data.

    Attributes:
        pairs: examples to train on.
        held_out: examples held out.
        steps: optimizer steps.
        pairs_read: examples whose lengths were read; all, unless there are very many.
        prompt_tokens: median and maximum length.
        completion_tokens: median and maximum length.
        tokens_per_pair: median and maximum of the tokens that go through the model for an example.
        micro_batches: mean number in a step.
        useful_share: share of the tokens through the model that are not padding.
        shapes: number of distinct shapes of micro-batches. Nothing is compiled by shape, so a new one costs no time.
        num_checkpointable: feed-forwards and blocks that can be recomputed in the backward pass.
        num_checkpointed: how many of them the largest micro-batch recomputes.
        prompt_sharing: how prompts go through the model, for display.
        memory: bytes: `limit`, `held` (weights, optimizer state and gradients) and `peak`; if completions are sampled,
            `sampling`, what that takes beside the weights, and is in the peak.
        is_measured: whether the peak was measured by trial steps; else it is an estimate of what does not fit.
        seconds: `reference` (once, unless it is cached), `training`, `evaluations`; empty if it does not fit.
        max_length_that_fits: the --max-length with which all pairs would fit; None if the longest one fits.
    """

    pairs: int
    held_out: int
    steps: int
    pairs_read: int
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]
    tokens_per_pair: tuple[int, int]
    micro_batches: float
    useful_share: float
    shapes: int
    num_checkpointable: int
    num_checkpointed: int
    prompt_sharing: str
    memory: dict[str, int]
    is_measured: bool
    seconds: dict[str, float]
    max_length_that_fits: int | None

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the limit."""
        return self.memory["peak"] <= self.memory["limit"]

    def to_mapping(self) -> dict[str, Any]:
        """Return the estimate as plain values, for JSON."""
        return {**{_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}, "fits": self.fits}


def estimate_run(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    valid_rows: Rows | None = None,
    listener: Listener | None = None,
    prompts: Prompts | None = None,
    judge: JudgeOrFunction | None = None,
) -> RunEstimate:
    """Estimate the time and memory of `train` with the same arguments. Writes nothing but the cache.

    Args:
        config: the run's settings.
        model: an mlx-lm model in memory; it is trained a few steps in place.
        tokenizer: its tokenizer.
        rows: preference rows in memory, instead of `config.data`.
        valid_rows: held-out rows in memory.
        listener: receives `Preparing` and `RunEnd`.
        prompts: with `config.on_policy`, prompts in memory.
        judge: with `config.on_policy`, a judge in memory; nothing is judged.

    Raises:
        UserError: as `train` does.
    """
    listener = listener or Listener()
    try:
        inputs = TrainInputs(config, model, tokenizer, rows, valid_rows, listener, prompts=prompts, judge=judge)
        components = build_components(inputs)
        with tempfile.TemporaryDirectory() as folder:
            on_policy, reference = components.on_policy, components.train_set.reference
            source = None
            if on_policy:
                source = planned_source(components.config, components.loss, on_policy.prompts, reference)
            return _estimate(
                components, components.make_trainer(RunFolder(folder), Listener(), source=source), listener
            )
    finally:
        listener.handle(RunEnd())


def _sampling_bytes(components: TrainComponents, prompt_tokens: int) -> int:
    """Bytes that sampling takes beside the weights, with completions of the greatest length."""
    config = components.config
    num_prompts = config.batch_size * (config.num_mini_batches or config.rollout_batches)
    sequences = min(DEFAULT_BATCH_SIZE, num_prompts * completions_per_prompt(config, components.loss))
    has_two_caches = components.loss.opponent is Opponent.MIXTURE
    num_bytes = sampling_bytes(components.policy.model, prompt_tokens, config.max_tokens, sequences)
    return num_bytes * 2 if has_two_caches else num_bytes


def _estimate(components: TrainComponents, trainer: Trainer, listener: Listener) -> RunEstimate:
    listener.handle(Preparing("Reading the lengths of the pairs"))
    memory_model, limit = components.memory_model, memory_limit(components.config)
    network = memory_model.network
    batches = _first_epoch(trainer)
    micro_batches = [micro for batch in batches for micro in batch.micro_batches]
    costs = [BatchCost.from_batch(micro, network.sharing) for micro in micro_batches]
    largest = max(micro_batches, key=memory_model.peak_bytes)
    peak, seconds = int(memory_model.peak_bytes(largest)), dict[str, float]()
    num_pairs, held_out = components.num_examples, components.example_sets.get(HELD_OUT)
    num_held_out = len(held_out.indices) if held_out else 0
    reference = components.train_set.reference.reference_policy
    is_policy = isinstance(reference, SharedNetworkReference) and reference.is_policy()  # asked before the trial steps
    if is_measured := peak <= max(limit, usable_memory()):
        forward, step, peak = _time_steps(trainer, memory_model, batches, largest, listener)
        epoch_tokens = sum(cost.tokens for cost in costs) * _steps_per_epoch(trainer) / len(batches)
        seconds = _run_seconds(trainer, forward, step, epoch_tokens, epoch_tokens / num_pairs, num_held_out, is_policy)
        if isinstance(reference, NoReference):
            seconds["reference"] = 0.0
    lengths = [pair for micro in micro_batches for pair in _example_lengths(micro)]
    memory = {"limit": limit, "held": memory_model.resident_bytes, "peak": peak}
    if components.on_policy:
        memory["sampling"] = _sampling_bytes(components, max(prompt for prompt, *_ in lengths))
        memory["peak"] = max(peak, memory["held"] + memory["sampling"])
    return RunEstimate(
        pairs=num_pairs,
        held_out=num_held_out,
        steps=trainer.steps,
        pairs_read=len(lengths),
        prompt_tokens=_median_and_max([prompt for prompt, *_ in lengths]),
        completion_tokens=_median_and_max([length for _, *completions in lengths for length in completions]),
        tokens_per_pair=_median_and_max([sum(pair) - 1 for pair in lengths]),
        micro_batches=len(micro_batches) / len(batches),
        useful_share=sum(cost.useful_tokens for cost in costs) / sum(cost.tokens for cost in costs),
        shapes=len(set(costs)),
        num_checkpointable=network.num_checkpointable,
        num_checkpointed=memory_model.num_checkpointed(largest),
        prompt_sharing=network.sharing.value,
        memory=memory,
        is_measured=is_measured,
        seconds=seconds,
        max_length_that_fits=None if peak <= limit else memory_model.max_pair_length(limit),
    )


def _steps_per_epoch(trainer: Trainer) -> int:
    return trainer.source.steps_per_epoch or trainer.steps


def _first_epoch(trainer: Trainer) -> list[OptimizerBatch]:
    """The optimizer batches of the first epoch, up to the last step; if there are very many, every n-th."""
    steps = min(trainer.steps, _steps_per_epoch(trainer))
    stride = max(1, steps * trainer.config.batch_size // MAX_PAIRS_READ)
    scorer, source, communicator = trainer.scorer, trainer.source, trainer.communicator
    batches = (source.batch(step) for step in range(0, steps, stride))
    return list(prefetch(scorer.make_batch(examples, communicator) for examples in batches if examples))


def _time_steps(
    trainer: Trainer, memory_model: MemoryModel, batches: list[OptimizerBatch], largest: MicroBatch, listener: Listener
) -> tuple[float, float, int]:
    """Try the largest micro-batch, which warms up and has the peak, then some of medium size.

    Returns seconds per token of a forward pass and of a step with the reference known, and the peak memory in bytes.
    """
    sharing, began = memory_model.network.sharing, time.perf_counter()
    listener.handle(Preparing("Trying the largest micro-batch"))
    heaviest = next(batch for batch in batches if largest in batch.micro_batches)
    others = [micro for micro in heaviest.micro_batches if micro is not largest]
    mx.reset_peak_memory()
    _try_step(trainer, _with_micro_batches(heaviest, [largest, *others[:1]]))  # gradients of two are added up
    by_size = sorted(
        (
            (BatchCost.from_batch(micro, sharing).tokens, i, micro)
            for i, batch in enumerate(batches)
            for micro in batch.micro_batches
        ),
        key=lambda candidate: candidate[:2],
    )
    tokens, seconds = 0, np.zeros(2)
    for number in range(1, TRIAL_MICRO_BATCHES + 1):
        if tokens and time.perf_counter() - began > TRIAL_SECONDS:
            break
        listener.handle(Preparing(f"Trying a micro-batch of middling size ({number} of {TRIAL_MICRO_BATCHES})"))
        num_tokens, index, micro = by_size[len(by_size) * number // (TRIAL_MICRO_BATCHES + 1)]
        tokens += num_tokens
        start = time.perf_counter()
        memory_model.network.logps(micro)
        forward = time.perf_counter() - start
        seconds += forward, _try_step(trainer, _with_micro_batches(batches[index], [micro]))
    forward, step = (seconds / tokens).tolist()
    return forward, step, mx.get_peak_memory()


def _with_micro_batches(batch: OptimizerBatch, micro_batches: list[MicroBatch]) -> OptimizerBatch:
    """An optimizer batch of some of a batch's micro-batches."""
    size = sum(len(micro.batch_indices) for micro in micro_batches)
    return replace(batch, size=size, micro_batches=micro_batches, mismatched_micro_batches=[])


def _try_step(trainer: Trainer, batch: OptimizerBatch) -> float:
    """Seconds of an optimizer step with made-up reference log-probs."""
    values = trainer.scorer.shared_values(batch.indices_in_order)
    made_up = {name: np.where(np.isnan(array), 0.0, array) for name, array in values.items()}
    trainer.scorer.receive_values(batch.indices_in_order, made_up)
    start = time.perf_counter()
    trainer.step(batch)
    return time.perf_counter() - start


def _run_seconds(
    trainer: Trainer,
    forward: float,
    step: float,
    epoch_tokens: float,
    tokens_per_example: float,
    num_held_out: int,
    reference_is_policy: bool,
) -> dict[str, float]:
    """Estimated seconds of reference, training and evaluations, from seconds per token and the tokens of an epoch."""
    interval, steps = trainer.config.steps_per_eval, trainer.steps
    evaluations = 2 + ((steps - 1) // interval if interval else 0)
    passes = num_held_out * (evaluations + (not reference_is_policy))  # the first evaluation gives the reference
    passes += 2 * min(NUM_KL_EXAMPLES, num_held_out) * (evaluations - 1)  # none in the first
    run_tokens = epoch_tokens * steps / _steps_per_epoch(trainer)
    return {
        "reference": forward * min(run_tokens, epoch_tokens),
        "training": step * run_tokens,
        "evaluations": forward * tokens_per_example * passes,
    }


def _example_lengths(micro: MicroBatch) -> list[tuple[int, ...]]:
    """Tokens of each example's prompt and of its completions."""
    completions = np.array([len(ids) for _, ids in micro.sequences]).reshape(micro.completions_per_example, -1)
    prompts = [len(prompt) for prompt, _ in micro.sequences]
    return [(prompt, *map(int, lengths)) for prompt, lengths in zip(prompts, completions.T, strict=False)]


def _median_and_max(lengths: list[int]) -> tuple[int, int]:
    return int(np.median(lengths)), max(lengths)
