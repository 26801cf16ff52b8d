"""Metrics of examples, with TRL's names and meanings, and their means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import mlx.core as mx
import numpy as np

from mlx_dpo.objectives import WeightedLoss

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
# Of a reward model, which has no log-probs; the last three are over all completions, as TRL's RewardTrainer names them.
REWARD_MODEL_METRICS = (*PAIR_METRICS[:5], "mean_reward", "min_reward", "max_reward")
# Single completions count as chosen or rejected by their label, and lack what takes both. KL is the whole batch's.
METRICS = (*PAIR_METRICS, "kl")
EXTREMES: dict[str, Callable[[np.ndarray], float]] = {"min_reward": np.nanmin, "max_reward": np.nanmax}  # not means
RATE_METRICS = ("rewards/accuracies", "logps/accuracies")  # shares of examples


def metric_names(loss: WeightedLoss) -> tuple[str, ...]:
    """Return the metrics that examples have under a loss."""
    return REWARD_MODEL_METRICS if loss.needs_reward_head else METRICS


def pair_metrics(losses: mx.array, logps: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The metrics of pairs.

    An accuracy is 1 if the chosen completion has the higher reward or log-prob, else 0, ties included, as in TRL.

    Args:
        losses: [pairs].
        logps: [2 * pairs] nats, all chosen, then all rejected.
        rewards: [2 * pairs], of `WeightedLoss.rewards`.

    Returns:
        [pairs, METRICS], float64, NaN for metrics that pairs lack.
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


def reward_model_metrics(losses: mx.array, rewards: np.ndarray) -> np.ndarray:
    """The metrics of pairs under a reward model.

    Args:
        losses: [pairs].
        rewards: [2 * pairs], all chosen, then all rejected.

    Returns:
        [pairs, REWARD_MODEL_METRICS], float64.
    """
    table = pair_metrics(losses, np.full_like(rewards, np.nan), rewards)[:, : METRICS.index("logps/chosen")]
    of_pairs = rewards.reshape(2, -1)
    return np.column_stack([table, of_pairs.mean(axis=0), of_pairs.min(axis=0), of_pairs.max(axis=0)])


def completion_metrics(losses: mx.array, logps: np.ndarray, rewards: np.ndarray, desirable: np.ndarray) -> np.ndarray:
    """The metrics of single completions.

    Args:
        losses: [completions].
        logps: [completions] nats.
        rewards: [completions], of `WeightedLoss.rewards`.
        desirable: [completions] bool; a desirable completion is "chosen", any other "rejected".

    Returns:
        [completions, METRICS], float64, NaN for metrics that a completion lacks.
    """
    chosen, rejected = np.where(desirable, 0.0, np.nan), np.where(desirable, np.nan, 0.0)
    return _table(
        {
            "loss": np.array(losses),
            "rewards/chosen": rewards + chosen,
            "rewards/rejected": rewards + rejected,
            "logps/chosen": logps + chosen,
            "logps/rejected": logps + rejected,
        }
    )


def _table(columns: dict[str, np.ndarray]) -> np.ndarray:
    missing = np.full(len(columns["loss"]), np.nan)
    return np.stack([columns.get(name, missing) for name in METRICS], axis=1).astype(np.float64)


def mean_metrics(rows: Iterable[np.ndarray], names: Sequence[str] = METRICS) -> dict[str, float]:
    """The mean of each metric over all examples that have it; metrics that no example has are left out.

    Of "min_reward" and "max_reward" it is the smallest and the largest value.

    Args:
        rows: arrays of [examples, names].
        names: of the metrics.
    """
    table = np.concatenate(list(rows))
    counts, sums = (~np.isnan(table)).sum(axis=0), np.nansum(table, axis=0)
    if "loss" in names:  # a loss that is NaN must show
        loss = names.index("loss")
        counts[loss], sums[loss] = len(table), table[:, loss].sum()
    means = {name: float(total / count) for name, total, count in zip(names, sums, counts, strict=True) if count}
    for name, extreme in EXTREMES.items():
        if name in means:
            means[name] = float(extreme(table[:, names.index(name)]))
    if "rewards/margins" not in means and {"rewards/chosen", "rewards/rejected"} <= means.keys():
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means
