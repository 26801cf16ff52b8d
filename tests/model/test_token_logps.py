"""Token log-probs and their slopes against numpy in float64, at the corners too."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.model import token_logps as head
from mlx_dpo.model.token_logps import token_logps

VOCABULARY, HIDDEN, ROWS = 300, 16, 50


def in_float64(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    return logits[np.arange(len(targets)), targets] - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_log_probs_and_slopes(monkeypatch: pytest.MonkeyPatch, spread: float, cap: float | None) -> None:
    """A spread of 100 puts targets a thousand nats down, where a float32 probability is zero."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 7 * 4 * VOCABULARY)
    rng = np.random.default_rng(0)
    rows = (spread * rng.standard_normal((ROWS, HIDDEN))).astype(np.float32)
    weight = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, ROWS)

    def capped(rows: np.ndarray) -> np.ndarray:
        logits = rows.astype(np.float64) @ weight.T.astype(np.float64)
        return logits if cap is None else cap * np.tanh(logits / cap)

    def logits(rows: mx.array) -> mx.array:
        plain = rows @ mx.array(weight).T
        return plain if cap is None else cap * mx.tanh(plain / cap)

    terms = token_logps(mx.array(rows), mx.array(targets), logits, VOCABULARY, slopes=True)
    logps, slopes = terms.logps, terms.slopes
    alone = token_logps(mx.array(rows), mx.array(targets), logits, VOCABULARY, slopes=False)
    expected = in_float64(capped(rows), targets)
    assert bool(expected.min() < head.FAINT) == (cap is None and spread >= 10)
    np.testing.assert_allclose(np.array(logps), expected, rtol=1e-5, atol=1e-5)
    assert alone.slopes is None and mx.array_equal(alone.logps, logps)

    step = 1e-6
    assert slopes is not None
    for i in range(HIDDEN):
        bump = np.zeros(HIDDEN)
        bump[i] = step
        difference = (in_float64(capped(rows + bump), targets) - in_float64(capped(rows - bump), targets)) / (2 * step)
        np.testing.assert_allclose(np.array(slopes)[:, i], difference, rtol=1e-3, atol=2e-4)
