"""What `label` writes, and which preferences it takes from a judge's verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from mlx_dpo.errors import UserError
from mlx_dpo.labeling.pair_selection import PairStrategy

LabelFormat = Literal["pairs", "scores", "rankings", "labelled"]
_ONLY_FOR = {  # setting -> the formats that it applies to
    "pairs": ("pairs",),
    "top_k": ("pairs",),
    "length_control": ("pairs",),
    "margin": ("pairs", "labelled"),
    "threshold": ("labelled",),
}


@dataclass(frozen=True)
class LabelSettings:
    """The settings of `label`, checked when constructed.

    Attributes:
        format: rows to write: pairs (prompt, chosen, rejected), scores or rankings (prompt, completions), or labelled
            (prompt, completion, label).
        pairs: which pairs of a prompt's completions; see `select_pairs`.
        top_k: number of pairs of the strategy top-k.
        margin: smallest difference of the scores of a pair, or of a score and the threshold of a label.
        length_control: score subtracted for each character of a completion before pairs are selected.
        threshold: a completion is labelled true above this score, and false below it; None: the mean over its prompt's
            completions. Labels of rows are compared with the judge's by it too.
        drop_truncated: leave out completions that ended because they were too long, by `finish_reasons`.

    Raises:
        UserError: a value is out of range, or a setting does not apply to the format.
    """

    format: LabelFormat = "pairs"
    pairs: PairStrategy = "best-worst"
    top_k: int = 1
    margin: float = 0.0
    length_control: float = 0.0
    threshold: float | None = None
    drop_truncated: bool = False

    def __post_init__(self) -> None:
        _check_choice("format", self.format, get_args(LabelFormat))
        _check_choice("pairs", self.pairs, get_args(PairStrategy))
        for name in ("margin", "length_control"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"must be a number of at least 0, not {value}", field=name)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UserError(f"must be a finite number, not {self.threshold}", field="threshold")
        if self.top_k < 1:
            raise UserError(f"must be at least 1, not {self.top_k}", field="top_k")
        if self.top_k > 1 and self.pairs != "top-k":
            raise UserError("applies to --pairs top-k only", field="top_k")
        for field in fields(self):
            formats = _ONLY_FOR.get(field.name, (self.format,))
            if getattr(self, field.name) != field.default and self.format not in formats:
                message = f"does not apply to --format {self.format}"
                raise UserError(message, field=field.name, hint=f"It is for --format {' or '.join(formats)}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"must be one of {', '.join(choices)}, not {value!r}", field=name)
