"""Rows to score: a prompt with any number of answers, in whatever shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_dpo.data.conversations import as_messages
from mlx_dpo.data.examples import Candidates, Example, Pair
from mlx_dpo.data.row_formats import examples_of
from mlx_dpo.errors import RowError, Where

_LISTS = ("completions", "scores", "rankings", "chosen", "rejected")


def candidates_of(row: Any, where: Where) -> list[Example]:
    """A row as one prompt and all its answers. Raises `RowError`.

    Taken are pairs and single completions in every shape that training takes, `completions` with or without a judgement
    of them, and lists of texts as `chosen` and `rejected`, as RewardBench 2 has them.
    """
    if isinstance(row, dict):
        if isinstance(row.get("completions"), list):
            return [_joined(row, {"completions": row["completions"]}, where)]
        good, bad = _texts(row.get("chosen")), _texts(row.get("rejected"))
        if good and bad:
            return [_joined(row, {"chosen": good, "rejected": bad}, where, len(good))]
    example = examples_of(row, where)[0]
    return [_candidates(row, example, example.answers, 1 if isinstance(example, Pair) else None)]


def _texts(value: Any) -> list[str]:
    """A list of texts, or nothing."""
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def _joined(row: dict[str, Any], lists: dict[str, list[Any]], where: Where, good: int | None = None) -> Candidates:
    """All answers of some columns, each read as it would be by itself."""
    answers = {f"{name}[{i}]": answer for name, column in lists.items() for i, answer in enumerate(column)}
    if not answers:
        raise RowError("is empty", kind="empty", field="completions", where=where)
    if not all(isinstance(answer, str) for answer in answers.values()):
        answers = {name: as_messages(answer) for name, answer in answers.items()}
    rest = {key: value for key, value in row.items() if key not in _LISTS}
    examples = [_read({**rest, "completion": answer}, name, where) for name, answer in answers.items()]
    if any(one.prompt != examples[0].prompt for one in examples):
        hint = "Write all of them in one way: texts, or lists of messages."
        raise RowError("the prompt reads otherwise before some answers", kind="type", where=where, hint=hint)
    return _candidates(row, examples[0], [one.answers[0] for one in examples], good)


def _read(row: dict[str, Any], name: str, where: Where) -> Example:
    """A row of one answer, which complaints call `name`."""
    try:
        return examples_of(row, where)[0]
    except RowError as error:
        if error.field and error.field.startswith("completion"):
            error.field = name + error.field.removeprefix("completion")
        raise


def _candidates(row: dict[str, Any], like: Example, answers: Sequence[Any], good: int | None) -> Candidates:
    return Candidates(row, like.prompt, tuple(answers), good, like.tools, like.template_kwargs, like.hh)
