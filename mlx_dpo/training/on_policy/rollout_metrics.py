"""Metrics of rollouts: reward, length, entropy, KL, variety, and how often the judge has no preference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlx_dpo.training.on_policy.rollout import Rollout

EMPTY_STEPS = "rollouts/empty_steps"

Sums = dict[str, list[float]]  # by metric, its sum and the count of what it was summed over


def add_rollouts(sums: Sums, rollouts: Iterable[Rollout]) -> None:
    """Add the numbers of rollouts to sums.

    Args:
        sums: changed in place.
        rollouts: with verdicts.
    """
    for rollout in rollouts:
        for name, values in _values(rollout).items():
            known = [value for value in values if value is not None and np.isfinite(value)]
            total, count = sums.get(name, [0.0, 0])
            sums[name] = [total + sum(known), count + len(known)]


def mean_rollout_metrics(sums: Sums) -> dict[str, float]:
    """The mean of each metric, without those of which nothing was counted."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def _values(rollout: Rollout) -> dict[str, list[float | None]]:
    """The values of each metric: of the policy's completions, or one of the prompt.

    `rollouts/ties` is 1 where the judge prefers no completion, and `rollouts/longer_chosen` is 1 where the preferred
    completion is the longer one, 0.5 where both are equally long.
    """
    own = rollout.policy_completions
    completions = [rollout.completions[i] for i in own]
    texts = [completion.text for completion in rollout.completions]
    is_tie = rollout.chosen is None and rollout.win_rate in (None, 0.5)
    values: dict[str, list[float | None]] = {
        "rollouts/reward": [rollout.scores[i] for i in own],
        "rollouts/length": [len(completion.token_ids) for completion in completions],
        "rollouts/entropy": [completion.entropy for completion in completions],
        "rollouts/kl": [completion.kl for completion in completions],
        "rollouts/distinct": [(len(set(texts)) - 1) / (len(texts) - 1)],
        "rollouts/cut_off": [completion.finish_reason == "length" for completion in completions],
        "rollouts/ties": [is_tie],
    }
    if rollout.chosen is not None and rollout.rejected is not None:
        chosen, rejected = (len(rollout.completions[i].token_ids) for i in (rollout.chosen, rollout.rejected))
        values["rollouts/longer_chosen"] = [0.5 + 0.5 * float(np.sign(chosen - rejected))]
    return values
