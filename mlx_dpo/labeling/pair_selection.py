"""Which pairs to train on, by a judge's verdicts on the completions of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts

PairStrategy = Literal["best-worst", "all", "top-k"]


class SelectedPair(NamedTuple):
    """A preference between two completions of a prompt.

    Attributes:
        chosen: index of the preferred completion.
        rejected: index of the other one.
        margin: by how much its score is higher, after length control.
    """

    chosen: int
    rejected: int
    margin: float


def select_pairs(
    verdicts: CandidateVerdicts,
    strategy: PairStrategy = "best-worst",
    margin: float = 0.0,
    *,
    top_k: int = 1,
    lengths: Sequence[int] | None = None,
    length_penalty: float = 0.0,
) -> list[SelectedPair]:
    """Select pairs of completions. There is none on a tie, nor where a verdict is missing.

    A pair needs two things: the judge prefers its chosen completion (of a judge that compares: in their comparison),
    and the chosen completion's score is higher by more than 0 and at least `margin`. With length control, scores are
    reduced by `length_penalty` times the completion's length, as in online iterative RLHF (Dong et al. 2024, arXiv
    2405.07863). So it drops pairs that length alone may have won, and never makes a pair against the judge.

    Args:
        verdicts: of the judge.
        strategy: "all" selects every pair; "best-worst" the one with the largest margin; "top-k" the `top_k` pairs
            with the largest margins of which no two share a completion.
        margin: smallest margin.
        top_k: number of pairs of "top-k".
        lengths: [n] lengths of the completions; needed with a penalty.
        length_penalty: in units of the score per unit of length.

    Returns:
        The pairs, the largest margin first; of equal margins, those of the first completions first.
    """
    scores = verdicts.scores
    if length_penalty:
        assert lengths is not None, "a length penalty needs lengths"
        scores = scores - length_penalty * np.asarray(lengths, np.float64)
    indices = range(len(scores))
    pairs = [
        SelectedPair(i, j, float(scores[i] - scores[j]))
        for i in indices
        for j in indices
        if scores[i] > scores[j] and scores[i] - scores[j] >= margin and verdicts.wins(i, j) > 0.5
    ]
    pairs.sort(key=lambda pair: -pair.margin)  # stable: in the order of the completions
    if strategy == "all":
        return pairs
    return _disjoint(pairs)[: top_k if strategy == "top-k" else 1]


def _disjoint(pairs: Sequence[SelectedPair]) -> list[SelectedPair]:
    """The pairs that share no completion with one before them."""
    selected, used = list[SelectedPair](), set[int]()
    for pair in pairs:
        if not used & {pair.chosen, pair.rejected}:
            selected.append(pair)
            used |= {pair.chosen, pair.rejected}
    return selected
