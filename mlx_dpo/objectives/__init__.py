"""Objectives: from log-probabilities to losses. One pure function each, with its paper; none knows of a model."""

from __future__ import annotations

from mlx_dpo.objectives.loss_inputs import LabelledLogps, PairLogps, Running
from mlx_dpo.objectives.loss_registry import ALIASES, KNOBS, OBJECTIVES, find
from mlx_dpo.objectives.objective import Objective, Rewards, objective
from mlx_dpo.objectives.weighted_loss import AllRunning, Loss

__all__ = [
    "ALIASES",
    "KNOBS",
    "OBJECTIVES",
    "AllRunning",
    "LabelledLogps",
    "Loss",
    "Objective",
    "PairLogps",
    "Rewards",
    "Running",
    "find",
    "objective",
]
