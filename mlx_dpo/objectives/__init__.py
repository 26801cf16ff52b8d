"""Objectives: from log-probabilities to losses. One pure function each, with its paper; none knows of a model."""

from __future__ import annotations

from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState, PairLogps
from mlx_dpo.objectives.loss_registry import LOSS_ALIASES, LOSS_FUNCTIONS, LOSS_SETTINGS, find_loss_function
from mlx_dpo.objectives.objective import LossFunction, RewardKind, objective
from mlx_dpo.objectives.weighted_loss import LossStates, WeightedLoss

__all__ = [
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
    "find_loss_function",
    "objective",
]
