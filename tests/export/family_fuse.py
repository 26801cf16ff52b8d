"""Fuse a random adapter into a random model of any type of tests/forward/families.py, and compare their logits.

benchmarks/fuse_types.py makes the table in the documentation of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np

from mlx_dpo.adapters.default_keys import default_keys
from mlx_dpo.errors import UserError
from mlx_dpo.export.fuse.adapted_model import AdaptedModel
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.forward.model_loading import load_model
from tests.export.family_models import save_adapter, save_model

AFFINE = {"group_size": 32, "bits": 4, "mode": "affine"}
IDS = [3 + 7 * i % 290 for i in range(24)]  # longer than the windows of layers that have one


@dataclass(frozen=True)
class FuseCase:
    """A base and what it is fused at.

    Attributes:
        name: for people.
        quantization: of the base; None for float32.
        bits: the value of --bits.
        tolerance: of `FuseOutcome.error`.
        over_tokens: from the errors of tokens to the error: the largest; or the median, where rounding may send a token
            to other experts.
    """

    name: str
    quantization: dict[str, Any] | None
    bits: Any
    tolerance: float
    over_tokens: Callable[[np.ndarray], np.floating[Any]]


CASES = {
    "float32": FuseCase("float32, as it is", None, "auto", 5e-5, np.max),
    "4bit-none": FuseCase("4 bits, `--bits none`", AFFINE, "none", 5e-5, np.max),
    "4bit-8": FuseCase("4 bits, `--bits 8`", AFFINE, "8", 0.08, np.median),
}
NOT_QUANTIZABLE = "mlx-lm can't quantize a model of this type"
REFUSALS = {  # of a type, by case: how the sentence begins
    "afm7": {"4bit-none": NOT_QUANTIZABLE, "4bit-8": NOT_QUANTIZABLE},
    "baichuan_m1": {"4bit-none": "mlx-lm changes lm_head as it loads"},
    "bitnet": dict.fromkeys(CASES, "no layer of this model matches --lora-keys"),
    "recurrent_gemma": dict.fromkeys(CASES, "mlx-lm can't freeze this model"),
}


@dataclass(frozen=True)
class FuseOutcome:
    """What came of it.

    Attributes:
        error: the difference of the fused model's logits from those with the adapter, relative to the latter's root
            mean square, in one number for all tokens.
        update: the same of the base model without the adapter.
        refusal: the sentence, where it was refused; the numbers are NaN then.
    """

    error: float = float("nan")
    update: float = float("nan")
    refusal: str = ""


def fuse_family(folder: Path, family: str, case: FuseCase) -> FuseOutcome:
    """Make a model and an adapter on the layers that `train` adapts by default, and fuse them.

    Args:
        folder: an empty folder for both, and the fused model.
        family: a type of `CONFIGS`.
        case: the base and the bits.
    """
    try:
        model = save_model(folder / "model", family, case.quantization)
    except TypeError:  # afm7, whose own layers don't take a mode
        return FuseOutcome(refusal=NOT_QUANTIZABLE)
    try:
        keys, _ = default_keys(load_model(str(model)).model, "lora")
        adapter = save_adapter(folder / "adapter", model, keys)
        fuse_adapter(str(model), adapter, folder / "fused", bits=case.bits)
    except UserError as error:
        return FuseOutcome(refusal=error.message)
    base, adapted, fused = logits(model), logits(model, adapter), logits(folder / "fused")
    errors = [case.over_tokens(relative_difference(other, adapted)) for other in (fused, base)]
    return FuseOutcome(*map(float, errors))


def relative_difference(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """[tokens], root mean square of the difference over that of `expected`.

    Only finite logits count: a model may set those of tokens of its own to minus infinity.
    """
    finite = np.isfinite(expected).all(axis=0)
    difference, expected = (logits - expected)[:, finite], expected[:, finite]
    return np.sqrt(np.square(difference).mean(axis=1)) / np.sqrt(np.square(expected).mean())


def logits(model: Path, adapter: Path | None = None) -> np.ndarray:
    """[tokens, vocabulary], by plain mlx-lm; with an adapter, which mlx-lm does not load for every type, by ours."""
    if adapter is None:
        loaded, _ = mlx_lm.load(str(model))
    else:
        loaded = AdaptedModel(str(model), adapter).load()[0].model
    return np.array(loaded(mx.array([IDS]))[0].astype(mx.float32), np.float64)
