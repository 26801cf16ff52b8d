"""What fusing came to: base, adapter and fused models side by side; for the terminal, for programs, and the card."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.export.fuse.bit_search import PrecisionPlan
from mlx_dpo.forward.network import block_prefix

MIN_KEPT_MARGIN = 0.95  # share of the adapter's margin that a fused model is to keep
FUSE_TABLE_COLUMNS = ("model", "bits", "MB", "margin", "kept", "accuracy", "KL/token")


@dataclass(frozen=True)
class ModelMeasurement:
    """A model, measured on the held-out pairs or not.

    Attributes:
        bits: of the adapted layers, for people.
        bytes: of all tensors.
        kept: share of what the adapter adds to the base's margin; `kept_error` is its standard error.
        kl: KL(adapter || model), nats, the mean over completion tokens.
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
        """Whether it keeps `FLOOR`, and by two standard errors more, so that it holds of other pairs too."""
        return self.kept is not None and self.kept - 2 * (self.kept_error or 0.0) >= MIN_KEPT_MARGIN

    @property
    def table_cells(self) -> list[str]:
        """As `COLUMNS` name them."""
        numbers = ((self.margin, ".3f"), (self.kept, ".1%"), (self.accuracy, ".1%"), (self.kl, ".2g"))
        shown = ["-" if value is None else format(value, form) for value, form in numbers]
        return [self.model, self.bits, f"{self.bytes / 1e6:,.2f}", *shown]


@dataclass(frozen=True)
class FusedModelReport:
    """What was fused.

    Attributes:
        path: the model's folder.
        plan: precision of each adapted layer.
        rows: base, adapter, what was tried, and last the model itself.
        note: a sentence, where something is to be said.
    """

    path: Path
    plan: PrecisionPlan
    measurements: list[ModelMeasurement] = field(default_factory=list)
    note: str = ""

    @property
    def fused_model(self) -> ModelMeasurement:
        """The fused model's."""
        return self.measurements[-1]

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        rows = [{k: _plain(v) for k, v in asdict(row).items()} for row in self.measurements]
        layers = {name: precision.to_json() for name, precision in self.plan.items()}
        return {
            "path": str(self.path),
            "bytes": self.fused_model.bytes,
            "kept": rows[-1]["kept"],
            "floor": MIN_KEPT_MARGIN,
        } | {
            "note": self.note,
            "models": rows,
            "layers": layers,
            "blocks": bits_by_block(self.plan),
        }


class MarginLostError(UserError):
    """A fused model that forgets too much, and was not saved; `fused` says what was measured."""

    def __init__(self, fused: FusedModelReport, adapter: Path) -> None:
        self.report = fused
        kept = fused.fused_model.kept or 0.0
        super().__init__(
            f"fused, the model keeps {kept:.1%} of the adapter's margin, less than {MIN_KEPT_MARGIN:.0%}, "
            "and was not saved",
            hint=f"The adapter itself loses nothing: ship {adapter} beside its base model. Or use --bits auto or none, "
            "train with --fuse-bits, or save it all the same with --force.",
        )


def describe_bits(plan: PrecisionPlan) -> str:
    """The bits of a plan's layers: one number, or how many layers have which."""
    counts = Counter(precision.bits for precision in plan.values())
    if len(counts) == 1:
        return _name(next(iter(counts)))
    some = sorted(counts.items(), key=lambda item: item[0] or 99)
    return ", ".join(f"{_name(bits)}: {count}" for bits, count in some)


def bits_by_block(plan: PrecisionPlan) -> dict[str, str]:
    """The bits of each block's layers, where they are not all the same."""
    blocks: dict[str, PrecisionPlan] = {}
    for name, precision in plan.items():
        blocks.setdefault(block_prefix(name), {})[name] = precision
    told = {name: describe_bits(part) for name, part in blocks.items()}
    return told if len(set(told.values())) > 1 else {}


def _name(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
