"""Objectives: from log-probabilities to losses. One pure function each, with its paper; none knows of a model."""

from __future__ import annotations

from mlx_dpo.objectives.loss import AllRunning, Loss
from mlx_dpo.objectives.objective import Objective, Rewards, objective
from mlx_dpo.objectives.pairs import LabelledLogps, PairLogps, Running
from mlx_dpo.objectives.registry import ALIASES, KNOBS, OBJECTIVES, find

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
