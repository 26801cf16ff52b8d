"""Token log-probs and their slopes against numpy in float64, at the corners too."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.forward import token_logps as head
from mlx_dpo.forward.token_logps import token_logps

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

    terms = token_logps(mx.array(rows), mx.array(targets), logits, VOCABULARY, gradients=True)
    logps, slopes = terms.logps, terms.logp_grads
    alone = token_logps(mx.array(rows), mx.array(targets), logits, VOCABULARY, gradients=False)
    expected = in_float64(capped(rows), targets)
    assert bool(expected.min() < head.MIN_SOFTMAX_LOGP) == (cap is None and spread >= 10)
    np.testing.assert_allclose(np.array(logps), expected, rtol=1e-5, atol=1e-5)
    assert alone.logp_grads is None and mx.array_equal(alone.logps, logps)

    step = 1e-6
    assert slopes is not None
    for i in range(HIDDEN):
        bump = np.zeros(HIDDEN)
        bump[i] = step
        difference = (in_float64(capped(rows + bump), targets) - in_float64(capped(rows - bump), targets)) / (2 * step)
        np.testing.assert_allclose(np.array(slopes)[:, i], difference, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_whole_distributions(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """log sum(p^2), and KL to another policy's rows with its slope, against float64."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 7 * 4 * VOCABULARY)
    rng = np.random.default_rng(1)
    rows, others = (spread * rng.standard_normal((2, ROWS, HIDDEN))).astype(np.float32)
    weight = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    targets = mx.array(rng.integers(0, VOCABULARY, ROWS))

    def logp(rows: np.ndarray) -> np.ndarray:
        logits = rows.astype(np.float64) @ weight.T.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def kl(rows: np.ndarray) -> np.ndarray:
        return (np.exp(logp(others)) * (logp(others) - logp(rows))).sum(axis=1)

    def terms(**asked: Any) -> head.TokenTerms:
        return token_logps(mx.array(rows), targets, lambda rows: rows @ mx.array(weight).T, VOCABULARY, **asked)

    found = terms(gradients=True, collision_logps=True, reference_hidden_states=mx.array(others))
    assert found.kls is not None and found.kl_grads is not None and found.collision_logps is not None
    np.testing.assert_allclose(np.array(found.collision_logps), np.log(np.exp(2 * logp(rows)).sum(axis=1)), atol=1e-5)
    np.testing.assert_allclose(np.array(found.kls), kl(rows), rtol=2e-5, atol=2e-6)
    plain = terms(gradients=True)
    assert mx.array_equal(plain.logps, found.logps) and mx.array_equal(plain.logp_grads, found.logp_grads)
    assert plain.kls is None and plain.kl_grads is None and plain.collision_logps is None
    assert terms(gradients=False, reference_hidden_states=mx.array(others)).kl_grads is None

    step = 1e-6
    for i in range(HIDDEN):
        bump = np.zeros(HIDDEN)
        bump[i] = step
        difference = (kl(rows + bump) - kl(rows - bump)) / (2 * step)
        np.testing.assert_allclose(np.array(found.kl_grads)[:, i], difference, rtol=1e-3, atol=2e-4)
