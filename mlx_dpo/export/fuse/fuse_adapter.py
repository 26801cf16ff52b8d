"""`fuse`: an adapter folded into its model, saved as a model folder that keeps what was trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.nn as nn

from mlx_dpo.adapters.merging import adapted_layers, layer_precision
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.calibration import find_calibration_set
from mlx_dpo.export.fuse.adapted_model import AdaptedModel
from mlx_dpo.export.fuse.bit_search import PrecisionPlan, precision_options, uniform_plan
from mlx_dpo.export.fuse.candidate_search import CandidateSearch, Say
from mlx_dpo.export.fuse.fuse_result import (
    MIN_KEPT_MARGIN,
    FusedModelReport,
    MarginLostError,
    ModelMeasurement,
    describe_bits,
)
from mlx_dpo.export.fuse.model_writer import unquantized_plan, write_fused_model
from mlx_dpo.forward.model_loading import load_tokenizer

FuseBits = Literal["auto", "same", "5", "6", "8", "none"]


def fuse_adapter(
    model: str,
    adapter_path: str | Path,
    save_path: str | Path,
    *,
    bits: FuseBits = "auto",
    calibrate: str | None = None,
    force: bool = False,
    on_progress: Say = lambda text: None,
) -> FusedModelReport:
    """Fold an adapter into its model and save a folder that mlx-lm loads.

    Args:
        model: model folder or Hub id the adapter was trained on.
        adapter_path: mlx-lm adapter folder; it is measured on the pairs that its run held out.
        save_path: the new folder; it must not exist or be empty.
        bits: of the adapted layers. auto: as few as keep `FLOOR` of the margin, block by block; same: the base's own;
            none: the whole model in the base's float type.
        calibrate: held-out pairs from a file instead.
        force: save what keeps less than `FLOOR`, too.
        say: hears what is being done.

    Raises:
        UserError: something given is wrong; `TooLittleKept` where it is the margin.
    """
    target = Path(save_path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("this exists already", where=Where(str(target)), hint="Choose another --save-path.")
    source, tokenizer = AdaptedModel(model, Path(adapter_path)), load_tokenizer(model)
    pairs = find_calibration_set(adapter_path, calibrate, tokenizer)
    if isinstance(pairs, str):
        fused = _unmeasured(source, target, bits, pairs)
    else:
        trials = CandidateSearch(source, pairs, on_progress)
        plan = trials.find_smallest_plan() if bits == "auto" else _forced(trials.model, bits)
        fused = FusedModelReport(
            target,
            plan,
            trials.measurements(plan),
            trials.note and f"Nothing can be said of what is kept: {trials.note}.",
        )
    if fused.fused_model.kept is not None and not fused.fused_model.kept >= MIN_KEPT_MARGIN and not force:
        raise MarginLostError(fused, source.adapter_path)
    on_progress("Writing")
    size = _write(source, fused, tokenizer)
    return replace(fused, measurements=[*fused.measurements[:-1], replace(fused.fused_model, bytes=size)])


def _unmeasured(source: AdaptedModel, target: Path, bits: FuseBits, why: str) -> FusedModelReport:
    """The plan where there are no pairs to choose by."""
    model = source.load()[0].model
    if bits == "auto" and any(len(precision_options(module)) > 1 for module in adapted_layers(model).values()):
        hint = "Give preference pairs it was not trained on with --calibrate FILE, or the bits yourself with --bits."
        raise UserError(
            f"nothing to measure the fused model on: {why}", where=Where(str(source.adapter_path)), hint=hint
        )
    plan = _forced(model, bits)
    note = f"Not measured: {why}. --calibrate FILE measures on other pairs."
    return FusedModelReport(target, plan, [ModelMeasurement("fused", describe_bits(plan), 0)], note)


def _forced(model: nn.Module, bits: FuseBits) -> PrecisionPlan:
    """The plan that `bits` names; auto where there is no choice."""
    layers = adapted_layers(model)
    if bits == "none":
        return unquantized_plan(model)
    if bits in ("auto", "same"):
        return uniform_plan(layers, 0)
    bases = {name: layer_precision(module) for name, module in layers.items()}
    if any(base.bits is None for base in bases.values()):
        hint = "Fuse it as it is, and quantize the result with `mlx_lm.convert -q`."
        raise UserError("the model is not quantized, so there are no bits to choose", field="bits", hint=hint)
    return {name: base if base.bits == int(bits) else base.with_bits(int(bits)) for name, base in bases.items()}


def _write(source: AdaptedModel, fused: FusedModelReport, tokenizer: Any) -> int:
    """Write the folder aside and move it into place; returns the bytes of its tensors."""
    partial = fused.path.with_name(f".{fused.path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    loaded, _ = source.load()
    try:
        size = write_fused_model(partial, loaded, fused.plan, tokenizer)
        if fused.path.exists():
            fused.path.rmdir()
        partial.rename(fused.path)
    except OSError as error:
        where = Where(str(fused.path))
        raise UserError(f"can't be written: {error.strerror or error}", where=where) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return size
