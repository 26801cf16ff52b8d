"""mlx's optimizers with our defaults, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError


def make_optimizer(config: TrainConfig) -> optim.Optimizer:
    """Make the optimizer that a config names. Adam and AdamW correct their bias, which is not mlx's default."""
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


def total_steps(config: TrainConfig, steps_per_epoch: int | None) -> int:
    """Return the number of optimizer steps of a run.

    Args:
        config: the run's settings.
        steps_per_epoch: steps per epoch of the batch source; None if it has no epochs.

    Raises:
        UserError: neither `iters` nor epochs give a number.
    """
    if config.iters:
        return config.iters
    if steps_per_epoch is None:
        raise UserError("the batch source has no epochs", field="iters", hint="Give the number of steps.")
    return max(1, math.ceil(config.epochs * steps_per_epoch))


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Return the number of warm-up steps; `warmup` below 1 is their share of the `total` steps."""
    return round(config.warmup * total) if config.warmup < 1 else int(config.warmup)


def learning_rate_at(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant, or decaying to 0 just after the last step.

    Args:
        config: the peak rate, warm-up and schedule.
        step: optimizer steps done before this one.
        total: optimizer steps in all.
    """
    warmup = min(warmup_steps(config, total), total)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * decay[config.lr_schedule]


def apply_gradients(optimizer: optim.Optimizer, model: nn.Module, gradients: Any, max_norm: float) -> float:
    """Clip gradients and apply them, unless they are not finite.

    Args:
        optimizer: the optimizer, with its learning rate set.
        model: the model; its trainable parameters are updated and evaluated.
        gradients: a tree like them.
        max_norm: clip to this norm; 0 never clips.

    Returns:
        The norm before clipping.
    """
    gradients, norm = optim.clip_grad_norm(gradients, max_norm or float("inf"))
    if np.isfinite(norm.item()):
        optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), optimizer.state)
    return float(norm.item())
