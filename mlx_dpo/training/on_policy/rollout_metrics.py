"""Metrics of rollouts: reward, length, entropy, KL, variety, and how often the judge has no preference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlx_dpo.training.on_policy.rollout import Rollout, RolloutCompletion

EMPTY_STEPS = "rollouts/empty_steps"

Sums = dict[str, list[float]]  # by metric, its sum and the count of what it was summed over


def add_rollouts(sums: Sums, rollouts: Iterable[Rollout]) -> None:
    """Add the numbers of rollouts to sums.

    Args:
        sums: changed in place.
        rollouts: with verdicts.
    """
    for rollout in rollouts:
        _add(sums, _answer_values(rollout) | _verdict_values(rollout))


def add_policy_gradient_rollouts(sums: Sums, rollouts: Iterable[Rollout], kl_coef: float) -> None:
    """Add the numbers of rollouts to sums: those of answers, and TRL's of a policy gradient's objective.

    Args:
        sums: changed in place.
        rollouts: with scores and log-probs by token.
        kl_coef: weight of the KL penalty.
    """
    for rollout in rollouts:
        _add(sums, _answer_values(rollout) | _objective_values(rollout, kl_coef))


def count_step(sums: Sums, *, is_empty: bool) -> None:
    """Count an optimizer step, and whether there was nothing to train on."""
    _add(sums, {EMPTY_STEPS: [is_empty]})


def mean_sequence_kl(rollouts: Iterable[Rollout]) -> float:
    """Mean of log pi - log pi_ref over the completions of rollouts, nats, summed over tokens."""
    return float(np.mean([_sequence_kl(item) for rollout in rollouts for item in rollout.completions]))


def _sequence_kl(completion: RolloutCompletion) -> float:
    return float(np.sum(completion.token_logps) - np.sum(completion.reference_token_logps))


def _add(sums: Sums, values_by_name: dict[str, list[float | None]]) -> None:
    for name, values in values_by_name.items():
        known = [value for value in values if value is not None and np.isfinite(value)]
        total, count = sums.get(name, [0.0, 0])
        sums[name] = [total + sum(known), count + len(known)]


def mean_rollout_metrics(sums: Sums) -> dict[str, float]:
    """The mean of each metric, without those of which nothing was counted."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def _answer_values(rollout: Rollout) -> dict[str, list[float | None]]:
    """The values of each metric: of the policy's completions, or one of the prompt."""
    own = rollout.policy_completions
    completions = [rollout.completions[i] for i in own]
    texts = [completion.text for completion in rollout.completions]
    return {
        "rollouts/reward": [rollout.scores[i] for i in own],
        "rollouts/length": [len(completion.token_ids) for completion in completions],
        "rollouts/entropy": [completion.entropy for completion in completions],
        "rollouts/kl": [completion.kl for completion in completions],
        "rollouts/distinct": [(len(set(texts)) - 1) / (len(texts) - 1)] if len(texts) > 1 else [],
        "rollouts/cut_off": [completion.finish_reason == "length" for completion in completions],
    }


def _verdict_values(rollout: Rollout) -> dict[str, list[float | None]]:
    """`rollouts/ties` is 1 where the judge prefers no completion.

    `rollouts/longer_chosen` is 1 where the preferred completion is the longer one, 0.5 where both are equally long.
    """
    is_tie = rollout.chosen is None and rollout.win_rate in (None, 0.5)
    values: dict[str, list[float | None]] = {"rollouts/ties": [is_tie]}
    if rollout.chosen is not None and rollout.rejected is not None:
        chosen, rejected = (len(rollout.completions[i].token_ids) for i in (rollout.chosen, rollout.rejected))
        values["rollouts/longer_chosen"] = [0.5 + 0.5 * float(np.sign(chosen - rejected))]
    return values


def _objective_values(rollout: Rollout, kl_coef: float) -> dict[str, list[float | None]]:
    """What TRL logs of each completion, summed over its tokens, and the weight of the KL penalty."""
    kls = [_sequence_kl(completion) for completion in rollout.completions]
    penalties = [-kl_coef * kl for kl in kls]
    rewards = [
        None if score is None else score + penalty for score, penalty in zip(rollout.scores, penalties, strict=True)
    ]
    return {
        "objective/kl": list(kls),
        "objective/entropy": [-float(np.sum(completion.token_logps)) for completion in rollout.completions],
        "objective/non_score_reward": list(penalties),
        "objective/scores": list(rollout.scores),
        "objective/rlhf_reward": rewards,
        "objective/kl_coef": [kl_coef],
    }
