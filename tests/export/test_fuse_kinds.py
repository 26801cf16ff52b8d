"""`fuse` of models and adapters out of the ordinary: each is fused and measured, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.export.fuse.fuse_result import FusedModelReport
from tests.conftest import PAIRS, rows_of, write_rows
from tests.export.family_models import save_adapter, save_model
from tests.plain import completion_ids

MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
AFFINE = {"group_size": 32, "bits": 4, "mode": "affine"}


def fuse(tmp_path: Path, **options: Any) -> FusedModelReport:
    """Fuse `adapter` into `model`, measured on the tests' pairs."""
    settings = {"calibrate": str(PAIRS), "force": True, **options}
    return fuse_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "fused", **settings)


def logits(model: Path, adapter: Path | None = None) -> np.ndarray:
    """[completion tokens, vocabulary] of all pairs, by plain mlx-lm, a sequence at a time."""
    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))
    rows = []
    for row in rows_of(PAIRS):
        for side in ("chosen", "rejected"):
            prompt, completion = completion_ids(tokenizer, row["prompt"], row[side])
            output = loaded(mx.array([[*prompt, *completion]])).astype(mx.float32)
            rows.append(np.array(output[0, len(prompt) - 1 : -1], np.float64))
    return np.concatenate(rows)


def mean_kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean over tokens of KL(p || q), from logits."""
    p, q = (
        x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
        for x in (p, q)
    )
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("bits", ["none", "auto", "8"])
def test_experts_in_mxfp4(tmp_path: Path, bits: str) -> None:
    """Of gpt-oss: experts with biases, whose scales are bytes."""
    model = save_model(tmp_path / "model", "gpt_oss", MXFP4)
    adapter = save_adapter(tmp_path / "adapter", model)
    report = fuse(tmp_path, bits=bits).fused_model
    expected = mean_kl(logits(model, adapter), logits(tmp_path / "fused"))
    assert report.kl == pytest.approx(expected, rel=1e-2) and report.margin is not None


@pytest.mark.parametrize("bits", ["none", "auto"])
def test_experts_that_mlx_can_not_multiply_on_the_cpu(tmp_path: Path, bits: str) -> None:
    """In bfloat16; the model with its adapter runs, for quantized experts do."""
    save_adapter(tmp_path / "adapter", save_model(tmp_path / "model", "gpt_oss", MXFP4, mx.bfloat16))
    with (
        mx.stream(mx.cpu),
        pytest.raises(UserError, match=r"with .*float.* bits can't be measured: .*float32") as raised,
    ):
        fuse(tmp_path, bits=bits)
    assert "--bits 8" in str(raised.value) and "\n" not in raised.value.message
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize("quantization", [None, AFFINE], ids=["float32", "4bit"])
@pytest.mark.parametrize("keys", [("lm_head",), ("model.embed_tokens",), ("lm_head", "model.embed_tokens")])
def test_an_adapted_head_or_embedding(
    tmp_path: Path, keys: tuple[str, ...], quantization: dict[str, Any] | None
) -> None:
    """Of a model that does not tie them; the KL is that of the whole models, not of one head on both hidden states."""
    model = save_model(tmp_path / "model", "llama", quantization)
    adapter = save_adapter(tmp_path / "adapter", model, [*keys, "self_attn.q_proj"], size=0.2)
    report = fuse(tmp_path, bits="same").fused_model
    expected = mean_kl(logits(model, adapter), logits(tmp_path / "fused"))
    assert report.kl == pytest.approx(expected, rel=1e-2, abs=1e-6) and report.margin is not None
    assert (expected > 1e-4) == (quantization is not None)


@pytest.mark.parametrize("force", [False, True])
def test_one_possible_precision_needs_no_margin(tmp_path: Path, force: bool) -> None:
    """A float base is fused as it is, whatever the pairs show of the adapter."""
    model = save_model(tmp_path / "model", "llama")
    adapter = save_adapter(tmp_path / "adapter", model)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows_of(PAIRS)]
    files = [str(PAIRS), str(write_rows(tmp_path / "swapped.jsonl", swapped))]
    margins = {}
    for name, file in zip("ab", files, strict=True):
        report = fuse_adapter(str(model), adapter, tmp_path / name, calibrate=file, force=force)
        margins[report.fused_model.margin] = report
        np.testing.assert_allclose(logits(tmp_path / name), logits(model, adapter), atol=1e-4)
    lower = margins[min(margins)]
    assert min(margins) < 0 < max(margins)
    assert "nothing to keep" in lower.note and lower.fused_model.kept is None


def test_a_head_that_mlx_lm_changes_as_it_loads_it(tmp_path: Path) -> None:
    """baichuan_m1's, whose rows get length one: an adapter on it would not be what was trained."""
    model = save_model(tmp_path / "model", "baichuan_m1")
    save_adapter(tmp_path / "adapter", model, ["lm_head", "self_attn.o_proj"])
    with pytest.raises(UserError, match="mlx-lm changes lm_head as it loads models of type 'baichuan_m1'") as raised:
        fuse(tmp_path)
    assert "--bits 8" in str(raised.value) and {p.name for p in tmp_path.iterdir()} == {"model", "adapter"}
