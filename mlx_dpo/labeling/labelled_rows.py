"""Verdicts on the completions of a row, as rows to train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.labeling.pair_selection import SelectedPair, select_pairs
from mlx_dpo.labeling.rows_to_label import RowToLabel


def selected_pairs(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[SelectedPair]:
    """The pairs of a row that the settings select."""
    return select_pairs(
        verdicts,
        settings.pairs,
        settings.margin,
        top_k=settings.top_k,
        lengths=[len(text) for text in row.texts],
        length_penalty=settings.length_control,
    )


def completion_labels(verdicts: CandidateVerdicts, settings: LabelSettings) -> list[bool | None]:
    """[n] whether each completion's score is above the threshold; None too close to it, or without a verdict."""
    known = verdicts.scores[~np.isnan(verdicts.scores)]
    if not len(known):
        return [None] * len(verdicts.scores)
    distances = verdicts.scores - (known.mean() if settings.threshold is None else settings.threshold)
    is_clear = (distances != 0) & (np.abs(distances) >= settings.margin)  # False for NaN
    return [bool(distance > 0) if clear else None for distance, clear in zip(distances, is_clear, strict=True)]


def labelled_rows(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[dict[str, Any]]:
    """The rows that `label` writes for a row.

    Args:
        row: the prompt and its completions.
        verdicts: of the judge on these.
        settings: the format of the rows, and which preferences they take.

    Returns:
        Rows that `train` reads as they are; none where the verdicts give no preference.
    """
    return _WRITERS[settings.format](row, verdicts, settings)


def _pair_rows(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[dict[str, Any]]:
    like = row.candidates
    return [
        Pair(
            like.prompt,
            row.completions[pair.chosen],
            row.completions[pair.rejected],
            like.tools,
            like.template_kwargs,
            scores=(float(verdicts.scores[pair.chosen]), float(verdicts.scores[pair.rejected])),
        ).to_row()
        for pair in selected_pairs(row, verdicts, settings)
    ]


def _completion_rows(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[dict[str, Any]]:
    like = row.candidates
    return [
        Completion(like.prompt, completion, label, like.tools, like.template_kwargs).to_row()
        for completion, label in zip(row.completions, completion_labels(verdicts, settings), strict=True)
        if label is not None
    ]


def _score_rows(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[dict[str, Any]]:
    return _graded_rows(row, verdicts, "scores", lambda scores: scores.tolist())


def _ranking_rows(row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> list[dict[str, Any]]:
    return _graded_rows(row, verdicts, "rankings", lambda scores: [1 + int((scores > score).sum()) for score in scores])


def _graded_rows(
    row: RowToLabel, verdicts: CandidateVerdicts, column: str, grades: Callable[[np.ndarray], list[Any]]
) -> list[dict[str, Any]]:
    """A row with the completions that have a verdict, if these are at least two with different scores."""
    judged = np.flatnonzero(~np.isnan(verdicts.scores))
    scores = verdicts.scores[judged]
    if len(set(scores.tolist())) < 2:
        return []
    like = row.candidates
    texts = {"prompt": like.prompt, "completions": [row.completions[i] for i in judged], column: grades(scores)}
    template = {"tools": like.tools, "chat_template_kwargs": like.template_kwargs}
    return [texts | {name: value for name, value in template.items() if value}]


_WRITERS = {"pairs": _pair_rows, "scores": _score_rows, "rankings": _ranking_rows, "labelled": _completion_rows}
