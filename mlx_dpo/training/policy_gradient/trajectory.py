"""A sampled completion with what a policy gradient needs of each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives.loss_function import LossFunction
from mlx_dpo.objectives.sampled_tokens import SampledRewards
from mlx_dpo.reference.reference_policy import NoReference, ReferencePolicy
from mlx_dpo.training.on_policy.rollout import Rollout, RolloutCompletion

EMPTY = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Trajectory(Completion):
    """A sampled completion; arrays are [tokens] float64.

    Attributes:
        old_logps: log-probs under the policy that sampled it, nats.
        old_values: values of the states before each token; 0 without a value head.
        advantages: of the tokens.
        returns: what the values should be.
    """

    old_logps: np.ndarray = field(default_factory=lambda: EMPTY, compare=False)
    old_values: np.ndarray = field(default_factory=lambda: EMPTY, compare=False)
    advantages: np.ndarray = field(default_factory=lambda: EMPTY, compare=False)
    returns: np.ndarray = field(default_factory=lambda: EMPTY, compare=False)

    @classmethod
    def planned(cls, num_tokens: int) -> Trajectory:
        """A made-up one, to plan a run with."""
        zeros = np.zeros(num_tokens)
        return cls("", "", old_logps=zeros, old_values=zeros, advantages=zeros, returns=zeros)


def measure_tokens(
    rollouts: Sequence[Rollout],
    encoded: Sequence[EncodedExample],
    memory_model: MemoryModel,
    reference: ReferencePolicy,
) -> list[Rollout]:
    """Compute the log-probs and the values of sampled tokens under the policy as it is.

    They are computed as in training, so that a ratio of probabilities is 1 before the first update.

    Args:
        rollouts: without log-probs by token.
        encoded: [rollouts] their completions as token ids.
        memory_model: has the policy's network, and says how many completions it runs at a time.
        reference: the reference.

    Returns:
        The rollouts with log-probs of policy and reference, and with values if the network has a value head.
    """
    measured: dict[tuple[int, int], RolloutCompletion] = {}
    network = memory_model.network
    for micro in split_into_micro_batches(encoded, memory_model.fits):
        with without_dropout(network.model):
            logps = network.logps(micro)
        own = logps.token_logps
        references = own if isinstance(reference, NoReference) else reference.token_logps(micro)
        for i in range(len(micro.sequences)):
            is_token = logps.sequence_indices == i
            rollout, number = micro.batch_indices[i % len(micro.batch_indices)], i // len(micro.batch_indices)
            policy_logps, reference_logps = _floats(own[is_token]), _floats(references[is_token])
            has_reference = references is not own
            measured[rollout, number] = replace(
                rollouts[rollout].completions[number],
                logp=sum(policy_logps),
                reference_logp=sum(reference_logps) if has_reference else None,
                token_logps=policy_logps,
                reference_token_logps=reference_logps,
                token_values=() if logps.token_values is None else _floats(logps.token_values[is_token]),
            )
    return [
        replace(rollout, completions=tuple(measured[i, j] for j in range(len(rollout.completions))))
        for i, rollout in enumerate(rollouts)
    ]


def make_trajectories(
    rollouts: Sequence[Rollout],
    prompts: Callable[[int], TextOrMessages],
    loss: LossFunction,
    settings: dict[str, float],
    kl_coef: float,
) -> list[list[Trajectory | None]]:
    """Compute the advantages of a batch of rollouts.

    Args:
        rollouts: with scores and log-probs by token.
        prompts: gives the prompt of an index.
        loss: the policy gradient.
        settings: of its advantages.
        kl_coef: weight of the KL penalty at this time.

    Returns:
        [rollouts, completions]; None where the judge gave no score.
    """
    assert loss.advantages is not None
    sampled = _sampled_rewards(rollouts, kl_coef)
    advantages, returns = (np.array(values, np.float64) for values in loss.advantages(sampled, **settings))
    trajectories, row = list[list[Trajectory | None]](), 0
    for rollout in rollouts:
        of_prompt = list[Trajectory | None]()
        for completion, score in zip(rollout.completions, rollout.scores, strict=True):
            length = len(completion.token_ids)
            trajectory = Trajectory(
                prompts(rollout.prompt),
                completion.text,
                old_logps=np.array(completion.token_logps),
                old_values=np.array(completion.token_values or (0.0,) * length),
                advantages=advantages[row, :length],
                returns=returns[row, :length],
            )
            of_prompt.append(None if score is None else trajectory)
            row += 1
        trajectories.append(of_prompt)
    return trajectories


def _sampled_rewards(rollouts: Sequence[Rollout], kl_coef: float) -> SampledRewards:
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    scores = [score for rollout in rollouts for score in rollout.scores]
    masks = [np.full(len(item.token_ids), score is not None) for item, score in zip(completions, scores, strict=True)]
    values = [item.token_values or (0.0,) * len(item.token_ids) for item in completions]
    return SampledRewards(
        mx.array([float("nan") if score is None else score for score in scores]),
        padded([item.token_logps for item in completions]),
        padded([item.reference_token_logps for item in completions]),
        padded(values),
        padded(masks),
        len(rollouts[0].completions),
        kl_coef,
    )


def padded(rows: Sequence[Sequence[float] | np.ndarray]) -> mx.array:
    """Rows of different lengths as one float32 array, with zeros at their ends."""
    table = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return mx.array(table)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float64).tolist())
