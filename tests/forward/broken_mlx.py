"""Faults of mlx and numpy to plant, and what forgets what is known of the healthy ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.forward.backend_check import backend_problems
from mlx_dpo.forward.device import numpy_writes_through

Attend = Callable[..., mx.array]


def forget_backend() -> None:
    backend_problems.cache_clear()
    numpy_writes_through.cache_clear()


def attention_with_wrong_gradient(attend: Attend) -> Attend:
    """The gradient of the keys is half of what it should be."""

    def replaced(q: mx.array, k: mx.array, v: mx.array, **settings: Any) -> mx.array:
        def forward(*inputs: mx.array) -> mx.array:
            return attend(*inputs, **settings)

        def backward(inputs: list[mx.array], gradient: mx.array, output: mx.array) -> list[mx.array]:
            _, (q_grad, k_grad, v_grad) = mx.vjp(forward, list(inputs), [gradient])
            return [q_grad, 0.5 * k_grad, v_grad]

        custom: Any = mx.custom_function(forward)
        custom.vjp(backward)
        return custom(q, k, v)

    return replaced


def attention_with_wrong_output(attend: Attend) -> Attend:
    """Every query attends to a key less than it should, as with a mask that is off by one."""

    def replaced(q: mx.array, k: mx.array, v: mx.array, **settings: Any) -> mx.array:
        return attend(q, mx.concatenate([mx.zeros_like(k[:, :, :1]), k[:, :, 1:]], axis=2), v, **settings)

    return replaced


def plant_wrong_gradient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mx.fast, "scaled_dot_product_attention", attention_with_wrong_gradient(attention()))


def plant_wrong_output(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mx.fast, "scaled_dot_product_attention", attention_with_wrong_output(attention()))


def attention() -> Attend:
    attend: Attend = mx.fast.scaled_dot_product_attention
    return attend


def plant_copying_numpy(patch: pytest.MonkeyPatch) -> None:
    """A numpy that copies, whatever it is asked for."""
    array = np.array

    def copying(value: Any, *args: Any, copy: Any = True, **options: Any) -> Any:
        return array(value, *args, copy=True, **options)

    patch.setattr(np, "array", copying)


def plant_refusing_numpy(patch: pytest.MonkeyPatch) -> None:
    """A numpy that can't have mlx's arrays without a copy, and says so as numpy 2 does."""
    array = np.array

    def refusing(value: Any, *args: Any, copy: Any = True, **options: Any) -> Any:
        if copy is False and isinstance(value, mx.array):
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        return array(value, *args, copy=copy, **options)

    patch.setattr(np, "array", refusing)
