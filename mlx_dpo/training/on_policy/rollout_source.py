"""Batches of pairs that are sampled from the current policy and judged while training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.optimizer_batch import IndexedExample
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.judges.judge import Judge
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.reference.reference_policy import NoReference, ReferenceLogps
from mlx_dpo.training.batch_source import ShuffledDataset
from mlx_dpo.training.checkpoint import ComponentState
from mlx_dpo.training.events import Metrics
from mlx_dpo.training.on_policy.prompt_stream import PromptStream
from mlx_dpo.training.on_policy.rollout import Rollout, RolloutCompletion
from mlx_dpo.training.on_policy.rollout_judging import judge_rollouts
from mlx_dpo.training.on_policy.rollout_metrics import Sums, add_rollouts, count_step, mean_rollout_metrics
from mlx_dpo.training.on_policy.rollout_sampler import RolloutSampler
from mlx_dpo.training.on_policy.sampled_source import OnRollouts, SampledSource

MAX_DRAWS = 4  # times that prompts are drawn for a batch, if the judge has no preference on any of them

_UNUSED = Completion("", "")  # the reference scores token ids


@dataclass(frozen=True)
class RolloutSettings:
    """How optimizer batches are made of rollouts.

    Attributes:
        prompts_per_batch: prompts of an optimizer batch.
        batches_ahead: optimizer batches that are sampled from the same policy.
        opponent: whom the policy is compared with.
        missing_eos_penalty: subtracted from the score of a completion that was cut off.
        keeps_reference_logps: whether the reference stays as it is between sampling and training.
    """

    prompts_per_batch: int
    batches_ahead: int = 1
    opponent: Opponent = Opponent.POLICY
    missing_eos_penalty: float = 0.0
    keeps_reference_logps: bool = True


@dataclass
class SourceState:
    """What the next batches depend on beside the policy.

    Attributes:
        position: prompts drawn so far.
        num_examples: examples made so far.
        batches: those sampled ahead.
        sums: of the metrics since the last report.
    """

    position: int = 0
    num_examples: int = 0
    batches: list[list[Rollout]] = field(default_factory=list)
    sums: Sums = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        batches = [[rollout.to_mapping() for rollout in batch] for batch in self.batches]
        return {**vars(self), "batches": batches}

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> SourceState:
        """Make it from what `to_mapping` returned, read from JSON."""
        batches = [[Rollout.from_mapping(item) for item in batch] for batch in values["batches"]]
        return cls(**{**values, "batches": batches})


class RolloutSource(SampledSource):
    """Makes the examples of a step, pairs or single completions, of what is sampled and judged."""

    def __init__(
        self,
        prompts: PromptStream,
        sampler: RolloutSampler,
        judge: Judge,
        reference: ReferenceLogps,
        memory_model: MemoryModel,
        settings: RolloutSettings,
        digest: str,
        communicator: Communicator,
        replay: ShuffledDataset | None = None,
        on_rollouts: OnRollouts = lambda step, rollouts: None,
    ) -> None:
        """Make a source.

        Args:
            prompts: the prompts.
            sampler: samples their completions from the policy.
            judge: compares these.
            reference: table of the reference's log-probs, of the replayed examples first.
            memory_model: says how many completions the reference scores at a time.
            settings: how batches are made.
            digest: identifies prompts and judge.
            communicator: ranks that share the work.
            replay: offline pairs that each batch has beside the sampled ones.
            on_rollouts: receives the step, counted from 1, and its rollouts once the step is done.
        """
        super().__init__(prompts, sampler, judge, digest, communicator, on_rollouts)
        self.reference, self.memory_model, self.settings, self.replay = reference, memory_model, settings, replay
        self.steps_per_epoch = -(-len(prompts) // settings.prompts_per_batch)
        self._first_index = len(replay.examples) if replay else 0
        self._state = self._next_state = SourceState()
        self._rollouts: list[Rollout] = []

    def batch(self, step: int) -> Sequence[IndexedExample] | None:
        """Sample and judge, unless batches are left that were sampled ahead.

        Args:
            step: optimizer steps done before this one.

        Returns:
            The examples; None if the judge has no preference on any prompt that was drawn.

        Raises:
            UserError: the judge fails.
        """
        state = copy.deepcopy(self._state)
        if not state.batches:
            state.batches = self._draw_batches(state)
        rollouts = state.batches.pop(0)
        examples = [self._example(rollout, state) for rollout in rollouts if rollout.is_usable]
        add_rollouts(state.sums, rollouts)
        replayed = self.replay.batch(step) if self.replay else []
        is_empty = not examples and not replayed
        count_step(state.sums, is_empty=is_empty)
        self._next_state, self._rollouts = state, rollouts
        return None if is_empty else [*examples, *replayed]

    def after_step(self, step: int) -> None:
        """Take the step's batch as done: only now does the state that a checkpoint stores move on."""
        self._state = self._next_state
        self.on_rollouts(step, self._rollouts)

    def report_metrics(self) -> Metrics:
        """Return the means over the rollouts since the last report."""
        metrics = mean_rollout_metrics(self._state.sums)
        self._state = replace(self._state, sums={})
        return metrics

    def state(self) -> ComponentState:
        """Return the number of prompts drawn, and what was sampled ahead."""
        return ComponentState(self._state.to_mapping())

    def restore(self, state: ComponentState) -> None:
        """Continue from a checkpoint."""
        self._state = SourceState.from_mapping(state.values)

    def _draw_batches(self, state: SourceState) -> list[list[Rollout]]:
        """Optimizer batches from the policy as it is; prompts are drawn again for those without a preference."""
        size, count = self.settings.prompts_per_batch, self.settings.batches_ahead
        rollouts = self._draw(state, size * count)
        batches = [rollouts[i * size : (i + 1) * size] for i in range(count)]
        for batch in batches:
            for _ in range(1, MAX_DRAWS):
                if any(rollout.is_usable for rollout in batch):
                    break
                batch += self._draw(state, size)
        return batches

    def _draw(self, state: SourceState, count: int) -> list[Rollout]:
        """Rollouts of the next prompts."""
        state.position += count
        return self._roll_out(state.position - count, count)

    def _with_verdicts(self, rollouts: list[Rollout], prompts: Sequence[TextOrMessages]) -> list[Rollout]:
        """The rollouts with scores, and with the pair or the win rate that they give."""
        settings = self.settings
        return judge_rollouts(self.judge, rollouts, prompts, settings.opponent, settings.missing_eos_penalty)

    def _with_logps(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts with the reference's log-probs of their completions, if there is a reference."""
        reference = self.reference.reference_policy
        if isinstance(reference, NoReference) or not rollouts:
            return rollouts
        encoded = [self._encoded(rollout, range(len(rollout.completions)), _UNUSED) for rollout in rollouts]
        logps = np.zeros((len(rollouts), self.sampler.num_completions))
        for micro in split_into_micro_batches(encoded, self.memory_model.fits):
            rows = np.array(micro.batch_indices)
            logps[rows] = reference.sums(micro).reshape(-1, len(rows)).T
        return [
            replace(rollout, completions=tuple(map(_with_reference_logp, rollout.completions, row)))
            for rollout, row in zip(rollouts, logps.tolist(), strict=True)
        ]

    def _example(self, rollout: Rollout, state: SourceState) -> IndexedExample:
        """The example to train on; the reference's log-probs are entered into the table."""
        index = self._first_index + state.num_examples
        state.num_examples += 1
        prompt = self.prompts.prompts[rollout.prompt].prompt
        chosen, rejected = rollout.chosen, rollout.rejected
        example: Example
        if chosen is None or rejected is None:
            selected, example = [0], _completion(prompt, rollout)
        else:
            selected, example = [chosen, rejected], _pair(prompt, rollout, chosen, rejected)
        logps = [rollout.completions[i].reference_logp for i in selected]
        if self.settings.keeps_reference_logps and None not in logps:
            self.reference.fill(np.array([index]), np.array([logps], np.float64))
        where = Where("answer to a prompt", rollout.prompt + 1)
        return IndexedExample(index, where, partial(self._encoded, rollout, selected, example))

    def _encoded(self, rollout: Rollout, selected: Sequence[int], example: Example) -> EncodedExample:
        """Completions of a rollout as sampled, not tokenized again."""
        completions = tuple(rollout.completions[i].token_ids for i in selected)
        return EncodedExample(self.prompts.token_ids(rollout.prompt), completions, example)


def _with_reference_logp(completion: RolloutCompletion, logp: float) -> RolloutCompletion:
    return replace(completion, reference_logp=logp)


def _pair(prompt: TextOrMessages, rollout: Rollout, chosen: int, rejected: int) -> Pair:
    completions, scores = rollout.completions, (rollout.scores[chosen], rollout.scores[rejected])
    return Pair(
        prompt,
        completions[chosen].text,
        completions[rejected].text,
        scores=None if scores[0] is None or scores[1] is None else (scores[0], scores[1]),
        chosen_is_reference=completions[chosen].logp is None,
    )


def _completion(prompt: TextOrMessages, rollout: Rollout) -> Completion:
    win_rate = rollout.win_rate or 0.0
    return Completion(prompt, rollout.completions[0].text, desirable=win_rate > 0.5, win_rate=win_rate)
