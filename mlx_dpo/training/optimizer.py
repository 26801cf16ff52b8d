"""Optimizers from mlx under our defaults, and the learning rate of every step."""

from __future__ import annotations

import math

import mlx.optimizers as optim

from mlx_dpo.config import TrainConfig


def make_optimizer(config: TrainConfig) -> optim.Optimizer:
    """The optimizer a config names. Adam and AdamW correct their bias, as everywhere but in mlx by default."""
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adamw":
            return optim.AdamW(rate, weight_decay=decay, bias_correction=True)
        case "adam":
            return optim.Adam(rate, bias_correction=True)
        case "sgd":
            return optim.SGD(rate, weight_decay=decay)
        case "lion":
            return optim.Lion(rate, weight_decay=decay)
        case "adafactor":
            return optim.Adafactor(rate, weight_decay=decay, relative_step=False, scale_parameter=False)
        case "muon":
            return optim.Muon(rate, weight_decay=decay)


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Steps of the rising part: a share of all where `warmup` is below 1, else a number."""
    return round(config.warmup * total) if config.warmup < 1 else int(config.warmup)


def learning_rate_at(config: TrainConfig, step: int, total: int) -> float:
    """The rate of a step (from 0): a line up to the peak, then constant, or down to zero just after the last step."""
    warm = min(warmup_steps(config, total), total)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(1, total - warm))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * fall[config.lr_schedule]
