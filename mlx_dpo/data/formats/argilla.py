"""Argilla's records as `Dataset.records.to_json` writes them.

{"fields": {"prompt": ..., "response1": ..., "response2": ...}, "responses": {"preference": [{"value": "response1",
"user_id": ...}]}}, https://docs.argilla.io/latest/reference/argilla/records/records
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_dpo.data.formats.annotation_export import Annotation, AnnotationExport, answer_names, prompt_of_fields
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.json_values import printable
from mlx_dpo.errors import RowError

_NO_PREFERENCE = ("tie", "both", "neither", "none", "equal", "draw", "same", "discard", "unsure")


class Argilla(AnnotationExport):
    """A record whose label or ranking question names its answers; suggestions do not count."""

    order = 94
    column_sets = (("fields", "responses"),)
    tool = "Argilla"

    def matches(self, row: Row) -> bool:
        """Whether fields and responses are objects."""
        return isinstance(row["fields"], dict) and isinstance(row["responses"], dict)

    def annotation(self, row: Row) -> Annotation:
        """One point for an answer that is chosen, and of a ranking for each answer that it is ranked before."""
        fields = row["fields"]
        prompt = prompt_of_fields(fields, "fields")
        names = answer_names(fields, prompt)
        by_key = {_key(name): name for name in names}
        points = dict.fromkeys(names, 0.0)
        for question, value in _submitted(row["responses"]):
            for name, score in _points(question, value, by_key):
                points[name] += score
        return Annotation(prompt, [fields[name] for name in names], list(points.values()))


def _submitted(responses: Row) -> Iterator[tuple[str, Any]]:
    """(question, value) of the responses that count."""
    for question, answers in responses.items():
        for answer in answers if isinstance(answers, list) else []:
            is_submitted = isinstance(answer, dict) and answer.get("status", "submitted") == "submitted"
            if is_submitted and isinstance(answer.get("value"), (str, list)):
                yield question, answer["value"]


def _points(question: str, value: Any, by_key: dict[str, str]) -> Iterator[tuple[str, float]]:
    """The points that a response gives to answers. Raises `RowError` if it names something else."""
    if isinstance(value, list):
        ranks = dict(_ranks(question, value, by_key))
        yield from ((name, float(sum(rank < other for other in ranks.values()))) for name, rank in ranks.items())
    elif _key(value) in by_key:
        yield by_key[_key(value)], 1.0
    elif not any(word in value.lower() for word in _NO_PREFERENCE) and not value.isspace():
        raise _not_an_answer(question, value, by_key)


def _ranks(question: str, values: list[Any], by_key: dict[str, str]) -> Iterator[tuple[str, float]]:
    for position, item in enumerate(values):
        name, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, position)
        if _key(str(name)) not in by_key:
            raise _not_an_answer(question, str(name), by_key)
        yield by_key[_key(str(name))], float(rank) if isinstance(rank, (int, float)) else float(position)


def _not_an_answer(question: str, value: str, by_key: dict[str, str]) -> RowError:
    message = f"the response {printable(value, 40)!r} names none of the answers: {', '.join(by_key.values()) or 'none'}"
    hint = "The labels of the question must be the names of the fields with the answers."
    return RowError(message, kind="annotation", field=f"responses.{question}", hint=hint)


def _key(name: str) -> str:
    """A name without what labels and fields are written differently in: response-1, response_1, Response 1."""
    return "".join(c for c in name.lower() if c.isalnum())
