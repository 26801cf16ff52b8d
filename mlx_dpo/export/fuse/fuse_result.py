"""The result of fusing: base, adapter and fused models compared, for the terminal, for JSON and for the card."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.export.fuse.bit_search import PrecisionPlan
from mlx_dpo.utils.tensor_names import block_prefix

MIN_KEPT_MARGIN = 0.95  # share of the adapter's margin that a fused model has to keep
FUSE_TABLE_COLUMNS = ("model", "bits", "MB", "margin", "kept", "accuracy", "KL/token")


@dataclass(frozen=True)
class ModelMeasurement:
    """A model's size and, if there are held-out pairs, its metrics on them. The fields are keys of the JSON.

    Attributes:
        model: base, adapter, tried or fused.
        bits: bits of the adapted layers, as text.
        bytes: bytes of all tensors.
        margin: mean reward margin.
        kept: share of the adapter's gain in margin over the base.
        kept_error: standard error of `kept`.
        accuracy: share of pairs whose chosen completion has the higher reward.
        kl: KL(adapter || model) in nats, the mean over completion tokens.
    """

    model: str
    bits: str
    bytes: int
    margin: float | None = None
    kept: float | None = None
    kept_error: float | None = None
    accuracy: float | None = None
    kl: float | None = None

    @property
    def keeps_margin(self) -> bool:
        """Whether `kept` is at least `MIN_KEPT_MARGIN` even two standard errors lower, so that other pairs agree."""
        return self.kept is not None and self.kept - 2 * (self.kept_error or 0.0) >= MIN_KEPT_MARGIN

    @property
    def table_cells(self) -> list[str]:
        """Texts for `FUSE_TABLE_COLUMNS`."""
        numbers = ((self.margin, ".3f"), (self.kept, ".1%"), (self.accuracy, ".1%"), (self.kl, ".2g"))
        texts = ["-" if value is None else format(value, spec) for value, spec in numbers]
        return [self.model, self.bits, f"{self.bytes / 1e6:,.2f}", *texts]


@dataclass(frozen=True)
class FusedModelReport:
    """A fused model and the models it was compared with.

    Attributes:
        path: the model's folder.
        plan: precision of each adapted layer.
        measurements: those of the base, the adapter, the candidates that were tried, and last the fused model.
        note: a sentence for the user; empty if there is none.
    """

    path: Path
    plan: PrecisionPlan
    measurements: list[ModelMeasurement] = field(default_factory=list)
    note: str = ""

    @property
    def fused_model(self) -> ModelMeasurement:
        """The fused model's measurement."""
        return self.measurements[-1]

    def to_mapping(self) -> dict[str, Any]:
        """The report as JSON values."""
        models = [{key: _json_value(value) for key, value in asdict(m).items()} for m in self.measurements]
        return {
            "path": str(self.path),
            "bytes": self.fused_model.bytes,
            "kept": models[-1]["kept"],
            "floor": MIN_KEPT_MARGIN,
            "note": self.note,
            "models": models,
            "layers": {name: precision.to_json() for name, precision in self.plan.items()},
            "blocks": bits_by_block(self.plan),
        }


class MarginLostError(UserError):
    """A fused model keeps too little of the adapter's margin and was not saved.

    Attributes:
        report: the measurements.
    """

    def __init__(self, report: FusedModelReport, adapter_path: Path) -> None:
        """Describe the loss and the alternatives.

        Args:
            report: what was measured.
            adapter_path: the adapter's folder.
        """
        self.report = report
        super().__init__(
            f"the fused model keeps only {report.fused_model.kept or 0.0:.1%} of the adapter's margin, "
            f"less than {MIN_KEPT_MARGIN:.0%}, and was not saved",
            hint=f"The adapter itself loses nothing: ship {adapter_path} with its base model. Or use --bits auto or "
            "none, train with --fuse-bits, or save it anyway with --force.",
        )


def describe_bits(plan: PrecisionPlan) -> str:
    """The bits of a plan's layers as text: one number, or how many layers have which number."""
    counts = Counter(precision.bits for precision in plan.values())
    names = {bits: "float" if bits is None else str(bits) for bits in sorted(counts, key=lambda bits: bits or 99)}
    if len(names) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{name}: {counts[bits]}" for bits, name in names.items())


def bits_by_block(plan: PrecisionPlan) -> dict[str, str]:
    """The bits of each block's layers as text; empty if they are the same in all blocks."""
    blocks: dict[str, PrecisionPlan] = {}
    for name, precision in plan.items():
        blocks.setdefault(block_prefix(name), {})[name] = precision
    descriptions = {block: describe_bits(layers) for block, layers in blocks.items()}
    return descriptions if len(set(descriptions.values())) > 1 else {}


def _json_value(value: Any) -> Any:
    """A value that JSON has; NaN and infinities become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
