"""Fuse an adapter into its model and save a model folder that keeps what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import refuse_reward_model
from mlx_dpo.adapters.merging import adapted_layers, layer_precision
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.calibration import find_calibration_set
from mlx_dpo.export.fuse.adapted_model import AdaptedModel
from mlx_dpo.export.fuse.bit_search import PrecisionPlan, has_choice_of_bits, uniform_plan
from mlx_dpo.export.fuse.candidate_search import CandidateSearch
from mlx_dpo.export.fuse.fuse_result import (
    MIN_KEPT_MARGIN,
    FusedModelReport,
    MarginLostError,
    ModelMeasurement,
    describe_bits,
)
from mlx_dpo.export.fuse.model_writer import unquantized_plan, write_fused_model
from mlx_dpo.export.fuse.written_model import require_same_when_loaded
from mlx_dpo.forward.model_loading import load_tokenizer
from mlx_dpo.lineage.lineage_file import write_lineage
from mlx_dpo.lineage.lineage_steps import fused_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.utils.atomic_write import require_new, write_new
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

FuseBits = Literal["auto", "same", "5", "6", "8", "none"]


def fuse_adapter(
    model: str,
    adapter_path: str | Path,
    save_path: str | Path,
    *,
    bits: FuseBits = "auto",
    calibrate: str | None = None,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
    on_written: Callable[[Path, FusedModelReport], None] = lambda folder, report: None,
) -> FusedModelReport:
    """Fuse an adapter into its model and save a folder that mlx-lm loads.

    Args:
        model: folder or Hub id of the model that the adapter was trained on.
        adapter_path: mlx-lm adapter folder; the fused model is measured on its run's held-out pairs.
        save_path: the new folder, which must not exist or be empty.
        bits: bits of the adapted layers. auto: as few as keep `MIN_KEPT_MARGIN` of the margin, chosen by block; same:
            the base's own; none: the whole model in the base's float type.
        calibrate: file of preference pairs to measure on, instead of the run's held-out pairs.
        force: save the model even if it keeps less than `MIN_KEPT_MARGIN`.
        progress: receives what is being done.
        on_written: called with the folder before it takes its place, to write further files into it, so that they are
            there with the model or not at all; and with what is returned.

    Returns:
        The saved plan and all measurements.

    Raises:
        UserError: an argument is wrong.
        MarginLostError: the fused model keeps too little of the margin.
    """
    hint = "`mlx-dpo export --format peft` writes it for transformers, head included."
    refuse_reward_model(adapter_path, "and mlx-lm's models have no place for its head", hint)
    progress.begin("Loading the model and the pairs to measure on")
    target = Path(save_path)
    require_new(target)
    adapted_model, tokenizer = AdaptedModel(model, Path(adapter_path)), load_tokenizer(model)
    calibration = find_calibration_set(adapter_path, calibrate, tokenizer)
    if isinstance(calibration, str):
        report = _report_without_pairs(adapted_model, target, bits, calibration)
    else:
        search = CandidateSearch(adapted_model, calibration, progress)
        plan = search.find_smallest_plan() if bits == "auto" else _plan_for_bits(search.model, bits)
        note = search.note and f"It is unknown how much of the margin is kept: {search.note}."
        report = FusedModelReport(target, plan, search.measurements(plan), note)
    kept = report.fused_model.kept
    if kept is not None and not kept >= MIN_KEPT_MARGIN and not force:
        raise MarginLostError(report, adapted_model.adapter_path)
    progress.begin(f"Writing {target}")
    loaded, _ = adapted_model.load()
    lineage = fused_lineage(adapter_path, identify_model(model, loaded.path))
    with write_new(target) as folder:
        size = write_fused_model(folder, loaded, report.plan, tokenizer)
        write_lineage(folder, lineage)
        del loaded
        require_same_when_loaded(folder, report.plan)
        sized = replace(report.fused_model, bytes=size)
        report = replace(report, measurements=[*report.measurements[:-1], sized])
        on_written(folder, report)
    return report


def _report_without_pairs(
    adapted_model: AdaptedModel, target: Path, bits: FuseBits, missing_reason: str
) -> FusedModelReport:
    model = adapted_model.load()[0].model
    if bits == "auto" and has_choice_of_bits(adapted_layers(model)):
        raise UserError(
            f"there are no pairs to measure the fused model on: {missing_reason}",
            where=Where(str(adapted_model.adapter_path)),
            hint="Give pairs that were not used in training with --calibrate FILE, or choose the bits with --bits.",
        )
    plan = _plan_for_bits(model, bits)
    note = f"Not measured: {missing_reason}. Use --calibrate FILE to measure on other pairs."
    return FusedModelReport(target, plan, [ModelMeasurement("fused", describe_bits(plan), 0)], note)


def _plan_for_bits(model: nn.Module, bits: FuseBits) -> PrecisionPlan:
    """The plan for a value of `bits`; `auto` only if layers have no choice."""
    layers = adapted_layers(model)
    if bits == "none":
        return unquantized_plan(model)
    if bits in ("auto", "same"):
        return uniform_plan(layers, 0)
    precisions = {name: layer_precision(module) for name, module in layers.items()}
    if all(precision.bits is None for precision in precisions.values()):
        hint = "Fuse it as it is, and quantize the result with `mlx_lm.convert -q`."
        raise UserError("the model is not quantized, so there are no bits to choose", field="bits", hint=hint)
    # A quantized model has layers in float too: those whose input size is not a multiple of the group size.
    return {n: p if p.bits in (None, int(bits)) else p.with_bits(int(bits)) for n, p in precisions.items()}
