"""What is measured of pairs, under TRL's names, and how it is averaged."""

from __future__ import annotations

from collections.abc import Iterable

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


def pair_metrics(losses: mx.array, logps: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """One row a pair, the columns being `PAIR_METRICS`.

    An accuracy is 1 where the chosen completion has the higher reward (or log-prob) and 0 elsewhere, ties included, as
    in TRL.

    Args:
        losses: [pairs].
        logps, rewards: [2 * pairs], chosen then rejected; `Loss.rewards` says what rewards are.

    Returns:
        [pairs, len(PAIR_METRICS)], float64.
    """
    chosen, rejected = np.split(logps.astype(np.float64), 2)
    chosen_reward, rejected_reward = np.split(rewards.astype(np.float64), 2)
    columns = {
        "loss": np.array(losses),
        "rewards/chosen": chosen_reward,
        "rewards/rejected": rejected_reward,
        "rewards/accuracies": chosen_reward > rejected_reward,
        "rewards/margins": chosen_reward - rejected_reward,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "logps/accuracies": chosen > rejected,
    }
    return np.stack([columns[name] for name in PAIR_METRICS], axis=1).astype(np.float64)


def mean_metrics(rows: Iterable[np.ndarray]) -> dict[str, float]:
    """The mean of each metric over all pairs of some `pair_metrics`."""
    table = np.concatenate(list(rows))
    return dict(zip(PAIR_METRICS, table.mean(axis=0).tolist(), strict=True))
