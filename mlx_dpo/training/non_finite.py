"""Which examples made a step's numbers infinite or no numbers, and what they look like to the model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.chat_encoding import EncodedExample
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.metrics import METRICS

NON_FINITE_FILE = "not_finite.jsonl"  # in the run's folder


@dataclass(frozen=True)
class NonFiniteExample:
    """An example of a step whose numbers are not finite."""

    where: Where
    encoded: EncodedExample

    def to_json(self, step: int) -> str:
        """A line of not_finite.jsonl: the row's place and its tokens."""
        tokens = {"prompt": self.encoded.prompt, "completions": self.encoded.completions}
        return json.dumps({"step": step, "file": self.where.file, "line": self.where.line, **tokens})


def find_non_finite(indices: np.ndarray, metrics: np.ndarray, examples: EncodedExamples) -> list[NonFiniteExample]:
    """The examples whose own loss or log-probs are not finite, or all of a batch where it is none's alone.

    Args:
        indices: [batch], of its examples.
        rows: [batch, METRICS], of theirs.
    """
    own = [METRICS.index(name) for name in ("loss", "logps/chosen", "logps/rejected")]
    infinite = np.isinf(metrics[:, own]).any(axis=1) | np.isnan(metrics[:, 0])
    at_fault = indices[infinite] if infinite.any() else indices
    return [NonFiniteExample(examples.source.location(int(i)), examples[int(i)]) for i in at_fault]
