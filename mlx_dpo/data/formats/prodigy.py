"""Prodigy's JSONL of the interfaces `choice` and `compare`, https://prodi.gy/docs/api-interfaces.

choice: {"text": ..., "options": [{"id": 1, "text": ...}, ...], "accept": [1], "answer": "accept"}
compare: {"input": {"text": ...}, "accept": {"text": ...}, "reject": {"text": ...}, "answer": "accept"}
"""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.annotation_export import Annotation, AnnotationExport, prompt_of_fields
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.errors import RowError


class ProdigyChoice(AnnotationExport):
    """Options, of which some were selected: these are better than the others."""

    order = 96
    column_sets = (("options", "accept", "answer"), ("options", "answer"))
    tool = "Prodigy, choice"

    def matches(self, row: Row) -> bool:
        """Whether the options are objects with an id."""
        options = row["options"]
        if not isinstance(options, list) or not options:
            return False
        return all(isinstance(option, dict) and "id" in option for option in options)

    def annotation(self, row: Row) -> Annotation:
        """1 for the selected options; all 0 if the task was rejected or ignored."""
        selected = row.get("accept") if row["answer"] == "accept" else None
        if selected is not None and not isinstance(selected, list):
            raise RowError("must be a list of the ids of options", kind="annotation", field="accept")
        texts = [_text(option, f"options[{i}]") for i, option in enumerate(row["options"])]
        scores = [float(option["id"] in (selected or [])) for option in row["options"]]
        return Annotation(prompt_of_fields(row, "options"), texts, scores)


class ProdigyCompare(AnnotationExport):
    """Two outputs, shown in either order: "accept" prefers the one under `accept`, "reject" the other."""

    order = 97
    column_sets = (("input", "accept", "reject", "answer"),)
    tool = "Prodigy, compare"

    def matches(self, row: Row) -> bool:
        """Whether input and outputs are objects."""
        return all(isinstance(row[column], dict) for column in ("input", "accept", "reject"))

    def annotation(self, row: Row) -> Annotation:
        """1 for the preferred output; both 0 if the task was ignored."""
        answers = [_text(row[column], column) for column in ("accept", "reject")]
        scores = [float(row["answer"] == side) for side in ("accept", "reject")]
        return Annotation({"prompt": _text(row["input"], "input")}, answers, scores)


def _text(value: dict[str, Any], field: str) -> str:
    if not isinstance(value.get("text"), str):
        raise RowError("is missing", kind="missing key", field=f"{field}.text")
    return str(value["text"])
