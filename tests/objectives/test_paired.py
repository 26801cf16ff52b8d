"""Objectives on pairs against float64 numpy, values and central differences, at the corners too."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import TrainConfig, UserError
from mlx_dpo.objectives import Loss, objective
from mlx_dpo.training.run import make_loss

RATIOS = np.array([[0.0, 0.0], [1.3, -0.7], [-2.0, 5.0], [80.0, -80.0], [-80.0, 80.0], [3.0, 3.0]])


def dpo(chosen: np.ndarray, rejected: np.ndarray, beta: float, smoothing: float) -> np.ndarray:
    """Rafailov et al. 2023, eq. 7; Mitchell 2023 where labels are smoothed."""
    z = beta * (chosen - rejected)
    return (1 - smoothing) * np.logaddexp(0, -z) + smoothing * np.logaddexp(0, z)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_sigmoid(beta: float, smoothing: float) -> None:
    loss = Loss(objective("dpo"), beta, smoothing)
    flat = RATIOS.T.reshape(-1)
    (losses,), (slopes,) = mx.vjp(loss.of_pairs, [mx.array(flat.astype(np.float32))], [mx.ones(len(RATIOS))])
    np.testing.assert_allclose(np.array(losses), dpo(*RATIOS.T, beta, smoothing), rtol=1e-6, atol=1e-6)
    step = 1e-5
    for i in range(len(flat)):
        up, down = flat.copy(), flat.copy()
        up[i] += step
        down[i] -= step
        difference = dpo(*up.reshape(2, -1), beta, smoothing) - dpo(*down.reshape(2, -1), beta, smoothing)
        assert slopes[i].item() == pytest.approx(difference.sum() / (2 * step), rel=1e-4, abs=1e-6)


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UserError, match="sigmoid"):
        make_loss(TrainConfig(loss="sigmod"))
