"""What is measured of examples, under TRL's names, and how it is averaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

# Measured of each pair; a report gives the mean over its pairs.
PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
)
# Of single completions, desirable ones are "chosen"; what takes two of them is not there. KL is the whole batch's.
METRICS = (*PAIR_METRICS, "kl")


def pair_metrics(losses: mx.array, logps: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """[pairs, METRICS], float64, NaN where there is no such number.

    An accuracy is 1 where the chosen completion has the higher reward (or log-prob) and 0 elsewhere, ties included, as
    in TRL.

    Args:
        losses: [pairs].
        logps, rewards: [2 * pairs], chosen then rejected; `Loss.rewards` says what rewards are.
    """
    chosen, rejected = np.split(logps, 2)
    chosen_reward, rejected_reward = np.split(rewards, 2)
    return _table(
        {
            "loss": np.array(losses),
            "rewards/chosen": chosen_reward,
            "rewards/rejected": rejected_reward,
            "rewards/accuracies": chosen_reward > rejected_reward,
            "rewards/margins": chosen_reward - rejected_reward,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "logps/accuracies": chosen > rejected,
        }
    )


def completion_metrics(losses: mx.array, logps: np.ndarray, rewards: np.ndarray, desirable: np.ndarray) -> np.ndarray:
    """The same of single completions; all arrays are [completions]."""
    wanted, unwanted = np.where(desirable, 0.0, np.nan), np.where(desirable, np.nan, 0.0)
    return _table(
        {
            "loss": np.array(losses),
            "rewards/chosen": rewards + wanted,
            "rewards/rejected": rewards + unwanted,
            "logps/chosen": logps + wanted,
            "logps/rejected": logps + unwanted,
        }
    )


def _table(columns: dict[str, np.ndarray]) -> np.ndarray:
    nothing = np.full(len(columns["loss"]), np.nan)
    return np.stack([columns.get(name, nothing) for name in METRICS], axis=1).astype(np.float64)


def mean_metrics(rows: Iterable[np.ndarray], names: Sequence[str] = METRICS) -> dict[str, float]:
    """The mean of each metric over all examples that have it; what none has is left out."""
    table = np.concatenate(list(rows))
    counts, sums = (~np.isnan(table)).sum(axis=0), np.nansum(table, axis=0)
    if "loss" in names:  # one that is no number is one that all should see
        loss = names.index("loss")
        counts[loss], sums[loss] = len(table), table[:, loss].sum()
    means = {name: float(s / n) for name, s, n in zip(names, sums, counts, strict=True) if n}
    if "rewards/margins" not in means and {"rewards/chosen", "rewards/rejected"} <= means.keys():
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means
