"""Objectives: from log-probs to losses. Every loss is a pure function in `losses/` that knows nothing about models."""

from __future__ import annotations

from mlx_dpo.objectives.loss_function import DIVERGENCE_DEFAULTS, LossFunction, RewardKind, declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState, PairLogps
from mlx_dpo.objectives.loss_registry import LOSS_ALIASES, LOSS_FUNCTIONS, LOSS_SETTINGS, find_loss_function
from mlx_dpo.objectives.weighted_loss import LossStates, WeightedLoss

objective = declare_loss  # deprecated alias, which users' files import

__all__ = [
    "DIVERGENCE_DEFAULTS",
    "LOSS_ALIASES",
    "LOSS_FUNCTIONS",
    "LOSS_SETTINGS",
    "LabelledLogps",
    "LossFunction",
    "LossState",
    "LossStates",
    "PairLogps",
    "RewardKind",
    "WeightedLoss",
    "declare_loss",
    "find_loss_function",
    "objective",
]
