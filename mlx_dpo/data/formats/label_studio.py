"""Label Studio's JSON export of pairwise comparisons.

{"data": {"prompt": ..., "answer1": ..., "answer2": ...}, "annotations": [{"result": [{"type": "pairwise",
"to_name": "answer1,answer2", "value": {"selected": "left"}}]}]}, https://labelstud.io/tags/pairwise
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_dpo.data.formats.annotation_export import Annotation, AnnotationExport, answer_names, prompt_of_fields
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.errors import RowError

_LEFT, _RIGHT = "left", "right"


class LabelStudio(AnnotationExport):
    """A task with its annotations; cancelled ones don't count."""

    order = 92
    column_sets = (("data", "annotations"),)
    tool = "Label Studio"

    def matches(self, row: Row) -> bool:
        """Whether the data is an object and the annotations are objects with a result."""
        annotations = row["annotations"]
        if not isinstance(row["data"], dict) or not isinstance(annotations, list):
            return False
        return all(isinstance(annotation, dict) and "result" in annotation for annotation in annotations)

    def annotation(self, row: Row) -> Annotation:
        """One point for each annotation that selects an answer."""
        fields = row["data"]
        prompt = prompt_of_fields(fields, "data")
        results = list(_pairwise_results(row["annotations"]))
        if not results:
            return Annotation(prompt, [], [])
        left, right = _compared(fields, prompt, results[0])
        selected = [result["value"].get("selected") for result in results]
        scores = [float(selected.count(side)) for side in (_LEFT, _RIGHT)]
        return Annotation(prompt, [fields[left], fields[right]], scores)


def _pairwise_results(annotations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pairwise results of the annotations that count."""
    for annotation in annotations:
        results = annotation["result"]
        if annotation.get("was_cancelled") or not isinstance(results, list):
            continue
        for result in results:
            if isinstance(result, dict) and result.get("type") == "pairwise" and isinstance(result.get("value"), dict):
                yield result


def _compared(fields: Row, prompt: Row, result: dict[str, Any]) -> list[str]:
    """The names of the left and the right answer, by `to_name` if the data has them. Raises `RowError`."""
    names = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    if len(names) != 2 or not all(fields.get(name) for name in names):
        names = answer_names(fields, prompt)
    if len(names) == 2:
        return names
    listed = ", ".join(names) or "none"
    hint = "Give the two texts in the labelling configuration the names of their columns."
    raise RowError(f"which two are compared is not clear: {listed}", kind="annotation", field="data", hint=hint)
