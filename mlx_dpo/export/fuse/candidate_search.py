"""Measure the base, the adapter and fused models on held-out pairs, with one model in memory at a time."""

from __future__ import annotations

from dataclasses import replace

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.adapters.adapter_folder import read_adapter
from mlx_dpo.adapters.merging import adapted_layers
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.calibration import CalibrationSet
from mlx_dpo.evaluation.margin_evaluator import MarginEvaluator, MarginMeasurement
from mlx_dpo.export.fuse.adapted_model import AdaptedModel, temporarily_merged
from mlx_dpo.export.fuse.bit_search import (
    PrecisionPlan,
    greedy_upgrade,
    has_choice_of_bits,
    smallest_sufficient_plan,
    uniform_plan,
)
from mlx_dpo.export.fuse.fuse_result import ModelMeasurement, describe_bits
from mlx_dpo.utils.progress import Progress
from mlx_dpo.utils.tensor_names import block_prefix

SENSITIVITY_PAIRS = 32


class CandidateSearch:
    """Measures candidate plans and keeps their measurements.

    Attributes:
        model: the model with the adapter; None once a fused model was measured.
        base: measurement of the base model.
        adapter: measurement of the model with the adapter.
        note: why it is unknown how much of the margin is kept; empty if it is known.
    """

    def __init__(self, adapted_model: AdaptedModel, calibration: CalibrationSet, progress: Progress) -> None:
        """Measure the base and the adapter.

        Args:
            adapted_model: the model with its adapter.
            calibration: the held-out pairs.
            progress: receives what is being measured.
        """
        self._adapted_model, self._progress = adapted_model, progress
        loaded, neutral_tensors = adapted_model.load()
        self.model: nn.Module | None = loaded.model
        progress.begin("Measuring the base model", "pairs")
        with swap_adapter(loaded.model, neutral_tensors):
            self._evaluator = MarginEvaluator.prepare(
                calibration.loss,
                calibration.example_set,
                calibration.batch_size,
                loaded.model,
                progress,
                use_cache=True,
            )
        self.base = self._evaluator.measure_base()
        progress.begin("Measuring the adapter", "pairs")
        self.adapter = self._evaluator.measure_adapter(loaded.model, use_cache=True)
        size = _size_bytes(loaded.model)
        adapter_size = sum(tensor.nbytes for tensor in read_adapter(adapted_model.adapter_path)[1].values())
        self._unfused = [
            self._to_model_measurement("base", "-", size - adapter_size, self.base),
            self._to_model_measurement("adapter", "-", size, self.adapter),
        ]
        self._fused: dict[str, ModelMeasurement] = {}
        self.note = ""
        if not self.adapter.mean_margin > self.base.mean_margin:
            self.note = (
                f"on the pairs of {calibration.name} the adapter's reward margin, {self.adapter.mean_margin:.3f}, is "
                f"not above the base's, {self.base.mean_margin:.3f}, so there is nothing to keep"
            )

    def find_smallest_plan(self) -> PrecisionPlan:
        """Find the smallest plan that keeps the margin; if none does, the largest plan.

        Raises:
            UserError: there is a choice of bits, and the adapter has no margin to choose them by.
        """
        assert self.model is not None
        layers = adapted_layers(self.model)
        if not has_choice_of_bits(layers):
            return uniform_plan(layers, 0)
        if self.note:
            hint = "Give pairs like those it was trained on with --calibrate FILE, or choose the bits with --bits."
            raise UserError(self.note, field="calibrate", hint=hint)
        plans = greedy_upgrade(layers, self._measure_sensitivity)
        return smallest_sufficient_plan(plans, lambda plan: self.measure_plan(plan).keeps_margin)

    def measurements(self, plan: PrecisionPlan) -> list[ModelMeasurement]:
        """The measurements of the base, the adapter, other plans that were tried, by size, and last the given plan."""
        chosen = self.measure_plan(plan)
        tried = [replace(m, model="tried") for m in self._fused.values() if m is not chosen]
        return [*self._unfused, *sorted(tried, key=lambda m: m.bytes), chosen]

    def measure_plan(self, plan: PrecisionPlan) -> ModelMeasurement:
        """Measure the model that is fused with a plan, once.

        Raises:
            UserError: mlx can't run it here.
        """
        key = repr(plan)
        if key not in self._fused:
            bits = describe_bits(plan)
            self._progress.begin(f"Measuring the fused model with {bits} bits", "pairs")
            self.model = None
            model = self._adapted_model.load_fused(plan)
            try:
                measurement = self._evaluator.measure(model)
            except UserError as error:  # such as experts in bfloat16, which mlx does not multiply on the CPU
                hint = "Choose bits that run here, such as --bits 8, or fuse on another machine."
                message = f"the fused model with {bits} bits can't be measured: {error.message}"
                raise UserError(message, field="bits", hint=hint) from error
            self._fused[key] = self._to_model_measurement("fused", bits, _size_bytes(model), measurement)
        return self._fused[key]

    def _measure_sensitivity(self, block: list[str]) -> float:
        """The mean squared change of some pairs' margins when a block's layers are rounded to the base's bits."""
        assert self.model is not None
        self._progress.begin(f"Measuring the sensitivity of {block_prefix(block[0])}", "pairs")
        evaluator = self._evaluator.subset(SENSITIVITY_PAIRS)
        layers = adapted_layers(self.model)
        with temporarily_merged(self.model, uniform_plan({name: layers[name] for name in block}, 0)):
            margins = evaluator.measure(self.model).margins
        return float(np.square(margins - self.adapter.margins[: len(margins)]).mean())

    def _to_model_measurement(
        self, name: str, bits: str, size: int, measurement: MarginMeasurement
    ) -> ModelMeasurement:
        kept = kept_error = None
        adapter_gain = self.adapter.margins - self.base.margins
        if adapter_gain.mean() > 0:
            gain = measurement.margins - self.base.margins
            kept = float(gain.mean() / adapter_gain.mean())
            # The standard error of a ratio of means.
            kept_error = float((gain - kept * adapter_gain).std() / (adapter_gain.mean() * len(gain) ** 0.5))
        return ModelMeasurement(
            name, bits, size, measurement.mean_margin, kept, kept_error, measurement.accuracy, measurement.kl
        )


def _size_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for _, tensor in tree_flatten(model.parameters()))
