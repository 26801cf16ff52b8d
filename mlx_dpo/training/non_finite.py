"""Which examples made a step's numbers infinite or no numbers, and what they look like to the model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.chat_encoding import Encoded
from mlx_dpo.data.encoded_examples import EncodedPairs
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.metrics import METRICS

NOT_FINITE = "not_finite.jsonl"  # in the run's folder


@dataclass(frozen=True)
class AtFault:
    """An example of a step whose numbers are not finite."""

    where: Where
    encoded: Encoded

    def to_json(self, step: int) -> str:
        """A line of not_finite.jsonl: the row's place and its tokens."""
        tokens = {"prompt": self.encoded.prompt, "completions": self.encoded.completions}
        return json.dumps({"step": step, "file": self.where.file, "line": self.where.line, **tokens})


def not_finite(indices: np.ndarray, rows: np.ndarray, examples: EncodedPairs) -> list[AtFault]:
    """The examples whose own loss or log-probs are not finite, or all of a batch where it is none's alone.

    Args:
        indices: [batch], of its examples.
        rows: [batch, METRICS], of theirs.
    """
    own = [METRICS.index(name) for name in ("loss", "logps/chosen", "logps/rejected")]
    infinite = np.isinf(rows[:, own]).any(axis=1) | np.isnan(rows[:, 0])
    at_fault = indices[infinite] if infinite.any() else indices
    return [AtFault(examples.source.where(int(i)), examples[int(i)]) for i in at_fault]
