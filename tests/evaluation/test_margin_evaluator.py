"""Base, adapter and another policy on pairs, against plain numpy, where they are far apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo.evaluation import margin_evaluator
from mlx_dpo.evaluation.calibration import CalibrationSet, find_calibration_set
from mlx_dpo.evaluation.margin_evaluator import MarginEvaluator
from mlx_dpo.forward import network
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of
from tests.plain import completion_ids, metrics


def models() -> tuple[Any, Any, Any, Any]:
    """Base, adapter, a policy that is neither, and their tokenizer."""
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    adapter, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    other, _ = mlx_lm.load(str(CHECKPOINT))
    other.model.norm.weight = 3 * other.model.norm.weight  # surer of everything
    return base, adapter, other, tokenizer


def log_probs(model: Any, tokenizer: Any, row: dict[str, Any], side: str) -> np.ndarray:
    """[completion tokens, vocabulary]."""
    prompt, completion = completion_ids(tokenizer, row["prompt"], row[side])
    logits = np.array(model(mx.array([[*prompt, *completion]]))[0], np.float64)[len(prompt) - 1 : -1]
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("rows_bytes", [1 << 28, 0])
def test_margins_accuracy_and_kl(monkeypatch: pytest.MonkeyPatch, rows_bytes: int) -> None:
    monkeypatch.setattr(margin_evaluator, "MAX_HIDDEN_STATES_BYTES", rows_bytes)
    monkeypatch.setattr(network, "head_chunk_tokens", lambda *sizes: 7)  # seven rows of logits at a time
    base, adapter, other, tokenizer = models()
    calibration = find_calibration_set(TRL / "adapter", str(PAIRS), tokenizer)
    assert isinstance(calibration, CalibrationSet)
    evaluator = MarginEvaluator.prepare(calibration.loss, calibration.example_set, 3, base)
    assert evaluator.measure_base().mean_margin == 0
    beta = calibration.loss.settings["beta"]
    adapter_result, other_result = evaluator.measure_adapter(adapter), evaluator.measure(other)
    for result, model in ((adapter_result, adapter), (other_result, other)):
        expected = metrics(model, base, tokenizer, rows_of(PAIRS), beta)
        assert result.mean_margin == pytest.approx(expected["rewards/margins"], abs=1e-4)
        assert result.accuracy == expected["rewards/accuracies"]
    if not rows_bytes:
        assert other_result.kl is None
        return
    completions = [(row, side) for row in rows_of(PAIRS) for side in ("chosen", "rejected")]
    both = [[log_probs(model, tokenizer, *completion) for model in (adapter, other)] for completion in completions]
    kl = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in both]).mean()
    reverse = np.concatenate([(np.exp(q) * (q - p)).sum(-1) for p, q in both]).mean()
    assert abs(kl - reverse) > 0.02 * kl, "or the direction can't be told"
    assert other_result.kl == pytest.approx(kl, rel=1e-4)


def test_the_first_pairs_alone() -> None:
    base, adapter, _, tokenizer = models()
    calibration = find_calibration_set(TRL / "adapter", str(PAIRS), tokenizer)
    assert isinstance(calibration, CalibrationSet)
    evaluator = MarginEvaluator.prepare(calibration.loss, calibration.example_set, 3, base)
    result = evaluator.subset(4).measure(adapter)  # two batches of three
    assert len(result.margins) == 6
    np.testing.assert_allclose(result.margins, evaluator.measure_adapter(adapter).margins[:6], rtol=1e-6)


def test_the_reason_for_no_pairs_is_given(tmp_path: Path) -> None:
    tokenizer = models()[3]
    reason = find_calibration_set(TRL / "adapter", None, tokenizer)
    assert isinstance(reason, str) and "config.yaml" in reason
    for text, words in (
        (f"data: {PAIRS}\nvalid_pairs: 0\n", "held no pairs out"),
        ("data: '-'\n", "pipe"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        reason = find_calibration_set(tmp_path, None, tokenizer)
        assert isinstance(reason, str) and words in reason
