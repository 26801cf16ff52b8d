"""Token log-probs and their slopes against numpy in float64, at the corners too."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.forward import softmax
from mlx_dpo.forward import token_logps as head
from mlx_dpo.forward.token_logps import token_logps

VOCABULARY, HIDDEN, ROWS = 300, 16, 50


def in_float64(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    return logits[np.arange(len(targets)), targets] - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_log_probs_and_slopes(spread: float, cap: float | None) -> None:
    """A spread of 100 puts targets a thousand nats down, where a float32 probability is zero."""
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

    terms = token_logps(mx.array(rows), mx.array(targets), logits, 7, gradients=True)
    logps, slopes = terms.logps, terms.logp_grads
    alone = token_logps(mx.array(rows), mx.array(targets), logits, 7, gradients=False)
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
def test_whole_distributions(spread: float) -> None:
    """log sum(p^2), and KL to another policy's rows with its slope, against float64."""
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
        return token_logps(mx.array(rows), targets, lambda rows: rows @ mx.array(weight).T, 7, **asked)

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


@pytest.mark.parametrize(
    ("vocabulary", "gigabytes", "tokens"),
    [(32_768, 16, 512), (151_936, 16, 205), (262_144, 16, 119), (262_144, 2, 64), (262_144, 64, 476)],
)
def test_chunks_have_enough_tokens_for_their_products(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, gigabytes: int, tokens: int
) -> None:
    monkeypatch.setattr(head, "numpy_computes", lambda: False)
    assert head.head_chunk_tokens(vocabulary, gigabytes * 10**9) == tokens


@pytest.mark.parametrize("spread", [0.1, 10.0])
def test_cpu_and_gpu_agree(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """numpy's softmax in place against mlx's, which a GPU uses."""
    rng = np.random.default_rng(2)
    rows, others = (mx.array(spread * rng.standard_normal((ROWS, HIDDEN))) for _ in range(2))
    weight, targets = mx.array(rng.standard_normal((HIDDEN, VOCABULARY))), mx.array(rng.integers(0, VOCABULARY, ROWS))

    def terms() -> head.TokenTerms:
        options = {"gradients": True, "collision_logps": True, "reference_hidden_states": others}
        return token_logps(rows, targets, lambda hidden: hidden @ weight, 10, **options)

    cpu = terms()
    monkeypatch.setattr(softmax, "numpy_computes", lambda: False)
    for name, array in vars(terms()).items():
        np.testing.assert_allclose(np.array(getattr(cpu, name)), np.array(array), rtol=2e-5, atol=2e-5, err_msg=name)


def test_logits_that_are_the_hidden_states_stay() -> None:
    """A model that is not split into body and head gives its logits instead of hidden states."""
    logits = mx.random.normal((ROWS, VOCABULARY))
    before = np.array(logits)
    terms = token_logps(logits, mx.zeros(ROWS, mx.int32), lambda hidden: hidden, 10, gradients=True)
    np.testing.assert_array_equal(np.array(logits), before)
    np.testing.assert_allclose(np.array(terms.logps), in_float64(before, np.zeros(ROWS, int)), rtol=1e-5, atol=1e-5)
