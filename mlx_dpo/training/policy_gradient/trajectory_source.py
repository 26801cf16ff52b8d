"""Optimizer batches of sampled completions for a policy gradient: each sample is used in several epochs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.optimizer_batch import IndexedExample
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.judges.judge import Judge
from mlx_dpo.objectives.loss_function import LossFunction
from mlx_dpo.objectives.policy_gradient import adapted_kl_coef
from mlx_dpo.reference.reference_policy import ReferencePolicy
from mlx_dpo.training.checkpoint import ComponentState
from mlx_dpo.training.events import Metrics
from mlx_dpo.training.on_policy.prompt_stream import PromptStream
from mlx_dpo.training.on_policy.rollout import Rollout
from mlx_dpo.training.on_policy.rollout_judging import score_rollouts
from mlx_dpo.training.on_policy.rollout_metrics import (
    Sums,
    add_policy_gradient_rollouts,
    count_step,
    mean_rollout_metrics,
    mean_sequence_kl,
)
from mlx_dpo.training.on_policy.rollout_sampler import RolloutSampler
from mlx_dpo.training.on_policy.sampled_source import OnRollouts, SampledSource
from mlx_dpo.training.policy_gradient.trajectory import Trajectory, make_trajectories, measure_tokens

_UNUSED = Completion("", "")  # the models are given token ids


@dataclass(frozen=True)
class TrajectorySettings:
    """How optimizer batches are made of rollouts.

    Attributes:
        loss: the policy gradient.
        advantage_settings: settings of its advantages.
        prompts_per_batch: prompts of an optimizer batch.
        num_mini_batches: optimizer batches that are sampled from the same policy.
        num_epochs: how often each sample is used.
        kl_coef: weight of the KL penalty, at first if it is adapted.
        kl_target: the KL of a completion that the weight is adapted to, nats; None for a fixed weight.
        kl_horizon: completions in which it adapts.
        missing_eos_penalty: subtracted from the score of a completion that was cut off.
        seed: of the order of the samples.
    """

    loss: LossFunction
    advantage_settings: dict[str, Any]
    prompts_per_batch: int
    num_mini_batches: int
    num_epochs: int
    kl_coef: float
    kl_target: float | None
    kl_horizon: int
    missing_eos_penalty: float
    seed: int

    @property
    def num_prompts(self) -> int:
        """Prompts that are sampled at a time."""
        return self.prompts_per_batch * self.num_mini_batches

    @property
    def num_batches(self) -> int:
        """Optimizer batches that are made of the samples."""
        return self.num_mini_batches * self.num_epochs


@dataclass(frozen=True)
class TrajectoryState:
    """What the next batches depend on beside the policy.

    Attributes:
        position: prompts drawn so far.
        num_examples: examples made so far.
        kl_coef: weight of the KL penalty of the current samples.
        rollouts: the current samples.
        num_used: optimizer batches made of them so far.
        sums: of the metrics since the last report.
    """

    position: int
    num_examples: int
    kl_coef: float
    rollouts: tuple[Rollout, ...] = ()
    num_used: int = 0
    sums: Sums = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return {**vars(self), "rollouts": [rollout.to_mapping() for rollout in self.rollouts]}

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> TrajectoryState:
        """Make it from what `to_mapping` returned, read from JSON."""
        return cls(**{**values, "rollouts": tuple(map(Rollout.from_mapping, values["rollouts"]))})


class TrajectorySource(SampledSource):
    """Samples completions and has them scored, computes their advantages, and trains on them in several epochs."""

    def __init__(
        self,
        prompts: PromptStream,
        sampler: RolloutSampler,
        judge: Judge,
        reference: ReferencePolicy,
        memory_model: MemoryModel,
        settings: TrajectorySettings,
        digest: str,
        communicator: Communicator,
        on_rollouts: OnRollouts = lambda step, rollouts: None,
    ) -> None:
        """Make a source.

        Args:
            prompts: the prompts.
            sampler: samples their completions from the policy.
            judge: scores these.
            reference: the reference.
            memory_model: has the policy's network.
            settings: how batches are made.
            digest: identifies prompts and judge.
            communicator: ranks that share the work.
            on_rollouts: receives the step, counted from 1, and the rollouts that were sampled for it once it is done.
        """
        super().__init__(prompts, sampler, judge, digest, communicator, on_rollouts)
        self.reference, self.memory_model, self.settings = reference, memory_model, settings
        self.steps_per_epoch = -(-len(prompts) // settings.num_prompts) * settings.num_batches
        self._state = self._next_state = TrajectoryState(0, 0, settings.kl_coef)
        self._made: tuple[tuple[Rollout, ...], list[list[Trajectory | None]]] | None = None
        self._new_rollouts: list[Rollout] = []

    def batch(self, step: int) -> Sequence[IndexedExample] | None:
        """Take the next of the current samples, and sample new ones if all epochs over them are done.

        Args:
            step: optimizer steps done before this one.

        Returns:
            The examples; None if none of them has a score.

        Raises:
            UserError: the judge fails.
        """
        state, num_batches = self._state, self.settings.num_batches
        is_new = not state.rollouts or state.num_used == num_batches
        if is_new:
            state = self._sample(state)
        examples = self._examples(state)
        sums = copy.deepcopy(state.sums)
        count_step(sums, is_empty=not examples)
        self._next_state = replace(
            state, num_examples=state.num_examples + len(examples), num_used=state.num_used + 1, sums=sums
        )
        self._new_rollouts = list(state.rollouts) if is_new else []
        return examples or None

    def after_step(self, step: int) -> None:
        """Take the step's batch as done: only now does the state that a checkpoint stores move on."""
        self._state = self._next_state
        if self._new_rollouts:
            self.on_rollouts(step, self._new_rollouts)

    def report_metrics(self) -> Metrics:
        """Return the means over what was sampled since the last report."""
        metrics = mean_rollout_metrics(self._state.sums)
        self._state = replace(self._state, sums={})
        return metrics

    def state(self) -> ComponentState:
        """Return the current samples, how far they are used, and the weight of the KL."""
        return ComponentState(self._state.to_mapping())

    def restore(self, state: ComponentState) -> None:
        """Continue from a checkpoint."""
        self._state = TrajectoryState.from_mapping(state.values)

    def _sample(self, state: TrajectoryState) -> TrajectoryState:
        """The state with new samples, with a KL weight that is adapted to the KL of those before."""
        settings, kl_coef = self.settings, state.kl_coef
        if settings.kl_target is not None and state.rollouts:
            kl, count = mean_sequence_kl(state.rollouts), sum(len(item.completions) for item in state.rollouts)
            kl_coef = adapted_kl_coef(kl_coef, kl, settings.kl_target, count, settings.kl_horizon)
        rollouts = tuple(self._roll_out(state.position, settings.num_prompts))
        sums = copy.deepcopy(state.sums)
        add_policy_gradient_rollouts(sums, rollouts, kl_coef)
        position = state.position + settings.num_prompts
        return replace(state, position=position, kl_coef=kl_coef, rollouts=rollouts, num_used=0, sums=sums)

    def _with_logps(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts with log-probs and values of their tokens."""
        encoded = [self._encoded(rollout, range(len(rollout.completions)), _UNUSED) for rollout in rollouts]
        return measure_tokens(rollouts, encoded, self.memory_model, self.reference)

    def _with_verdicts(self, rollouts: list[Rollout], prompts: Sequence[TextOrMessages]) -> list[Rollout]:
        """The rollouts with scores."""
        return score_rollouts(self.judge, rollouts, prompts, self.settings.missing_eos_penalty)

    def _examples(self, state: TrajectoryState) -> list[IndexedExample]:
        """The examples of the next optimizer batch of the samples."""
        settings, trajectories = self.settings, self._trajectories(state)
        usable = [i for i, items in enumerate(trajectories) if any(item is not None for item in items)]
        epoch, number = divmod(state.num_used, settings.num_mini_batches)
        order = np.random.default_rng([settings.seed, state.position, epoch]).permutation(usable)
        examples = list[IndexedExample]()
        for i in np.array_split(order, settings.num_mini_batches)[number].astype(int).tolist():
            rollout = state.rollouts[i]
            where = Where("answer to a prompt", rollout.prompt + 1)
            for j, trajectory in enumerate(trajectories[i]):
                if trajectory is not None:
                    index = state.num_examples + len(examples)
                    encode = partial(self._encoded, rollout, [j], trajectory)
                    examples.append(IndexedExample(index, where, encode))
        return examples

    def _trajectories(self, state: TrajectoryState) -> list[list[Trajectory | None]]:
        """The samples with their advantages, computed once."""
        if self._made is None or self._made[0] is not state.rollouts:
            settings = self.settings
            made = make_trajectories(
                state.rollouts, self._prompt, settings.loss, settings.advantage_settings, state.kl_coef
            )
            self._made = state.rollouts, made
        return self._made[1]

    def _prompt(self, index: int) -> TextOrMessages:
        return self.prompts.prompts[index].prompt

    def _encoded(self, rollout: Rollout, selected: Sequence[int], example: Completion) -> EncodedExample:
        """Completions of a rollout as sampled, not tokenized again."""
        completions = tuple(rollout.completions[i].token_ids for i in selected)
        return EncodedExample(self.prompts.token_ids(rollout.prompt), completions, example)
