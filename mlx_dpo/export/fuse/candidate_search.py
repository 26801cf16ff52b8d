"""Base, adapter and fused models measured on held-out pairs, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
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
from mlx_dpo.export.fuse.bit_search import PrecisionPlan, greedy_upgrade, smallest_sufficient_plan, uniform_plan
from mlx_dpo.export.fuse.fuse_result import ModelMeasurement, describe_bits
from mlx_dpo.forward.network import block_prefix

Say = Callable[[str], None]
SENSITIVITY_PAIRS = 32


class CandidateSearch:
    """What was measured so far.

    Attributes:
        model: with the adapter on it; let go of once a fused one is measured.
        note: a sentence, where something is to be said.
    """

    def __init__(self, source: AdaptedModel, pairs: CalibrationSet, say: Say) -> None:
        """Measure base and adapter."""
        self.adapted_model, self.calibration, self.on_progress = source, pairs, say
        loaded, undone = source.load()
        self.model: nn.Module | None = loaded.model
        say("Measuring the base model")
        with swap_adapter(loaded.model, undone):
            self.margin_evaluator = MarginEvaluator.prepare(
                pairs.loss, pairs.example_set, pairs.batch_size, loaded.model
            )
        say("Measuring the adapter")
        self.base_measurement, self.adapter_measurement = (
            self.margin_evaluator.measure_base(),
            self.margin_evaluator.measure_adapter(loaded.model),
        )
        own = sum(v.nbytes for _, v in tree_flatten(loaded.model.parameters()))
        added = sum(v.nbytes for v in read_adapter(source.adapter_path)[1].values())
        self._first = [
            self._row("base", "-", own - added, self.base_measurement),
            self._row("adapter", "-", own, self.adapter_measurement),
        ]
        self._tried: dict[str, ModelMeasurement] = {}
        self.note = "" if self.adapter_measurement.mean_margin > self.base_measurement.mean_margin else self._nothing()

    def find_smallest_plan(self) -> PrecisionPlan:
        """The smallest plan that keeps the margin, or the one that keeps most. Raises `UserError`."""
        assert self.model is not None
        if self.note:
            hint = "Give pairs of the kind it was trained on with --calibrate FILE."
            raise UserError(self.note, field="calibrate", hint=hint)
        plans = greedy_upgrade(adapted_layers(self.model), self._sensitivity)
        return smallest_sufficient_plan(plans, lambda plan: self.measure_plan(plan).keeps_margin)

    def measurements(self, plan: PrecisionPlan) -> list[ModelMeasurement]:
        """Base, adapter, all else that was tried, by size, and last the model fused by a plan."""
        last = self.measure_plan(plan)
        others = sorted((row for row in self._tried.values() if row is not last), key=lambda row: row.bytes)
        return [*self._first, *(replace(row, model="tried") for row in others), last]

    def measure_plan(self, plan: PrecisionPlan) -> ModelMeasurement:
        """The model fused by a plan, measured."""
        key = repr(plan)
        if key not in self._tried:
            self.on_progress(f"Measuring it fused, with {describe_bits(plan)} bits")
            self.model = None
            model = self.adapted_model.load_fused(plan)
            size = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
            self._tried[key] = self._row("fused", describe_bits(plan), size, self.margin_evaluator.measure(model))
        return self._tried[key]

    def _sensitivity(self, block: list[str]) -> float:
        """The mean squared change of the margins of some pairs as a block's layers are rounded to the base's bits."""
        assert self.model is not None
        self.on_progress(f"Measuring how sensitive {block_prefix(block[0])} is")
        few = self.margin_evaluator.subset(SENSITIVITY_PAIRS)
        layers = adapted_layers(self.model)
        with temporarily_merged(self.model, uniform_plan({name: layers[name] for name in block}, 0)):
            margins = few.measure(self.model).margins
        return float(np.square(margins - self.adapter_measurement.margins[: len(margins)]).mean())

    def _row(self, name: str, bits: str, size: int, measured: MarginMeasurement) -> ModelMeasurement:
        added, left = (
            self.adapter_measurement.margins - self.base_measurement.margins,
            measured.margins - self.base_measurement.margins,
        )
        if not added.mean() > 0:
            return ModelMeasurement(name, bits, size, measured.mean_margin, accuracy=measured.accuracy, kl=measured.kl)
        kept = left.mean() / added.mean()
        error = (left - kept * added).std() / (added.mean() * len(added) ** 0.5)  # of a ratio of means
        return ModelMeasurement(
            name, bits, size, measured.mean_margin, float(kept), float(error), measured.accuracy, measured.kl
        )

    def _nothing(self) -> str:
        return (
            f"on the pairs of {self.calibration.name} the adapter's reward margin, "
            f"{self.adapter_measurement.mean_margin:.3f}, is not above the base's, "
            f"{self.base_measurement.mean_margin:.3f}, so there is nothing to keep"
        )
