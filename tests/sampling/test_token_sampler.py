"""Tokens against a float64 inversion written from the definitions, and against the probabilities themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.token_sampler import completion_uniforms, sample_by_mlx, sample_tokens

Sampler = Callable[[mx.array, np.ndarray, SamplingParams], tuple[mx.array, mx.array]]
SAMPLERS = {"cpu": sample_tokens, "gpu": sample_by_mlx}  # the latter runs on any device
PARAMS = {
    "plain": SamplingParams(temperature=1.0),
    "cold": SamplingParams(temperature=0.4),
    "hot": SamplingParams(temperature=1.7),
    "top-p": SamplingParams(temperature=1.0, top_p=0.7),
    "top-p of almost all": SamplingParams(temperature=1.0, top_p=0.99999),
    "min-p": SamplingParams(temperature=1.3, min_p=0.05),
    "both": SamplingParams(temperature=0.8, top_p=0.95, min_p=0.01),
}


def probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What a token is sampled from, [vocabulary] float64: nucleus (arXiv 1904.09751), then min-p (2407.01082)."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    nucleus = order[: int((np.cumsum(p[order]) < params.top_p).sum()) + 1]
    kept = np.zeros(len(p), bool)
    kept[nucleus] = True
    kept &= p >= params.min_p * p.max()
    tempered = np.where(kept, p ** (1 / params.temperature), 0)
    return tempered / tempered.sum()


@pytest.mark.parametrize("vocabulary", [7, 512, 5000])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tokens_invert_the_cumulative_distribution(sampler: str, params: str, vocabulary: int) -> None:
    rng = np.random.default_rng(1)
    logits = (3 * rng.standard_normal((200, vocabulary))).astype(np.float32)
    uniforms = completion_uniforms(0, 0, 0, 200)
    tokens, logps = map(np.array, SAMPLERS[sampler](mx.array(logits), uniforms, PARAMS[params]))
    for row, uniform, token, logp in zip(logits, uniforms, tokens, logps, strict=True):
        p = probabilities(row, PARAMS[params])
        ends = np.cumsum(p)
        assert p[token] > 0
        assert ends[token] - p[token] - 2e-6 <= uniform <= ends[token] + 2e-6
        assert logp == pytest.approx(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()), abs=1e-5)


@pytest.mark.parametrize("params", ["plain", "top-p", "both"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_probabilities(sampler: str, params: str) -> None:
    logits = np.random.default_rng(2).standard_normal(40).astype(np.float32) * 2
    count = 4000
    uniforms = np.array([completion_uniforms(5, prompt, i, 3)[2] for prompt in range(40) for i in range(100)])
    tokens, _ = SAMPLERS[sampler](mx.array(np.tile(logits, (count, 1))), uniforms, PARAMS[params])
    p = probabilities(logits, PARAMS[params])
    counts = np.bincount(np.array(tokens), minlength=40)
    assert counts[p == 0].sum() == 0
    often = p * count >= 5
    expected = np.append(p[often], p[~often].sum()) * count
    observed = np.append(counts[often], counts[~often].sum())
    chi_square = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    degrees = often.sum()
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_greedy_is_the_argmax_and_ignores_the_number(sampler: str) -> None:
    logits = mx.random.normal((9, 700), key=mx.random.key(3))
    tokens, logps = SAMPLERS[sampler](logits, np.full(9, 0.9, np.float32), SamplingParams(top_p=0.5))
    assert tokens.tolist() == mx.argmax(logits, axis=-1).tolist()
    assert np.allclose(logps, (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).max(axis=-1), atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_distribution(sampler: str, uniform: float) -> None:
    logits = np.full((1, 3000), -np.inf, np.float32)
    logits[0, [700, 2100]] = 0.0
    token, logp = SAMPLERS[sampler](mx.array(logits), np.array([uniform], np.float32), PARAMS["plain"])
    assert token.tolist() == [700 if uniform == 0 else 2100]
    assert logp.tolist() == pytest.approx([-np.log(2)])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_half_precision_logits(sampler: str) -> None:
    logits = mx.random.normal((4, 300), key=mx.random.key(1)).astype(mx.bfloat16)
    uniforms = completion_uniforms(1, 2, 3, 4)
    tokens = SAMPLERS[sampler](logits.astype(mx.float32), uniforms, PARAMS["both"])[0]
    assert sample_tokens(logits, uniforms, PARAMS["both"])[0].tolist() == tokens.tolist()


def test_random_numbers_depend_on_seeds_completion_and_position_alone() -> None:
    numbers = completion_uniforms(1, 2, 3, 1000)
    assert numbers.dtype == np.float32 and numbers.min() >= 0 and numbers.max() < 1
    assert (completion_uniforms(1, 2, 3, 10) == numbers[:10]).all()
    others = [completion_uniforms(*key, 1000) for key in ((0, 2, 3), (1, 1, 3), (1, 2, 2), (12, 3, 0))]
    assert all(abs(np.corrcoef(numbers, other)[0, 1]) < 0.1 for other in others)
    assert abs(numbers.mean() - 0.5) < 0.03 and abs(numbers.var() - 1 / 12) < 0.01


@pytest.mark.parametrize(
    "values", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 1.2}, {"min_p": -0.1}, {"stop": ("",)}, {"stop": "x"}]
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values)).replace("_", "[_-]")):
        SamplingParams(**values)
