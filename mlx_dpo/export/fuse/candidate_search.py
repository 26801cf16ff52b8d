"""Base, adapter and fused models measured on held-out pairs, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.adapters.adapter_folder import read_adapter
from mlx_dpo.adapters.merging import adapted_layers
from mlx_dpo.adapters.swap import policy_as
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.calibration import Calibration
from mlx_dpo.evaluation.margin_evaluator import Measured, Yardstick
from mlx_dpo.export.fuse.adapted_model import AdaptedModel, folded
from mlx_dpo.export.fuse.bit_search import Plan, climb, plan_at, smallest
from mlx_dpo.export.fuse.fuse_result import Row, describe
from mlx_dpo.forward.network import block_of

Say = Callable[[str], None]
SENSITIVITY_PAIRS = 32


class Trials:
    """What was measured so far.

    Attributes:
        model: with the adapter on it; let go of once a fused one is measured.
        note: a sentence, where something is to be said.
    """

    def __init__(self, source: AdaptedModel, pairs: Calibration, say: Say) -> None:
        """Measure base and adapter."""
        self.source, self.pairs, self.say = source, pairs, say
        loaded, undone = source.open()
        self.model: nn.Module | None = loaded.model
        say("Measuring the base model")
        with policy_as(loaded.model, undone):
            self.yardstick = Yardstick.of(pairs.loss, pairs.held_out, pairs.batch_size, loaded.model)
        say("Measuring the adapter")
        self.base, self.adapter = self.yardstick.measure_base(), self.yardstick.measure_adapter(loaded.model)
        own = sum(v.nbytes for _, v in tree_flatten(loaded.model.parameters()))
        added = sum(v.nbytes for v in read_adapter(source.adapter)[1].values())
        self._first = [
            self._row("base", "-", own - added, self.base),
            self._row("adapter", "-", own, self.adapter),
        ]
        self._tried: dict[str, Row] = {}
        self.note = "" if self.adapter.margin > self.base.margin else self._nothing()

    def smallest(self) -> Plan:
        """The smallest plan that keeps the margin, or the one that keeps most. Raises `UserError`."""
        assert self.model is not None
        if self.note:
            hint = "Give pairs of the kind it was trained on with --calibrate FILE."
            raise UserError(self.note, field="calibrate", hint=hint)
        plans = climb(adapted_layers(self.model), self._sensitivity)
        return smallest(plans, lambda plan: self.row(plan).keeps)

    def rows(self, plan: Plan) -> list[Row]:
        """Base, adapter, all else that was tried, by size, and last the model fused by a plan."""
        last = self.row(plan)
        others = sorted((row for row in self._tried.values() if row is not last), key=lambda row: row.bytes)
        return [*self._first, *(replace(row, model="tried") for row in others), last]

    def row(self, plan: Plan) -> Row:
        """The model fused by a plan, measured."""
        key = repr(plan)
        if key not in self._tried:
            self.say(f"Measuring it fused, with {describe(plan)} bits")
            self.model = None
            model = self.source.fused(plan)
            size = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
            self._tried[key] = self._row("fused", describe(plan), size, self.yardstick.measure(model))
        return self._tried[key]

    def _sensitivity(self, block: list[str]) -> float:
        """The mean squared change of the margins of some pairs as a block's layers are rounded to the base's bits."""
        assert self.model is not None
        self.say(f"Measuring how sensitive {block_of(block[0])} is")
        few = self.yardstick.first(SENSITIVITY_PAIRS)
        layers = adapted_layers(self.model)
        with folded(self.model, plan_at({name: layers[name] for name in block}, 0)):
            margins = few.measure(self.model).margins
        return float(np.square(margins - self.adapter.margins[: len(margins)]).mean())

    def _row(self, name: str, bits: str, size: int, measured: Measured) -> Row:
        added, left = self.adapter.margins - self.base.margins, measured.margins - self.base.margins
        if not added.mean() > 0:
            return Row(name, bits, size, measured.margin, accuracy=measured.accuracy, kl=measured.kl)
        kept = left.mean() / added.mean()
        error = (left - kept * added).std() / (added.mean() * len(added) ** 0.5)  # of a ratio of means
        return Row(name, bits, size, measured.margin, float(kept), float(error), measured.accuracy, measured.kl)

    def _nothing(self) -> str:
        return (
            f"on the pairs of {self.pairs.name} the adapter's reward margin, {self.adapter.margin:.3f}, is not above "
            f"the base's, {self.base.margin:.3f}, so there is nothing to keep"
        )
