"""Rows to score: a prompt with any number of answers, in whatever shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_dpo.data.conversations import as_messages
from mlx_dpo.data.examples import Candidates, Example, Pair
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.text_values import decode_text_values
from mlx_dpo.errors import RowError, Where

_LIST_COLUMNS = ("completions", "scores", "rankings", "chosen", "rejected")


def parse_candidates(row: Any, where: Where) -> list[Example]:
    """Parse a row as one prompt and all its completions. Raises `RowError`.

    Accepts pairs and single completions in every format of training, `completions` with or without scores, and
    lists of texts as `chosen` and `rejected`, as in RewardBench 2.
    """
    if isinstance(row, dict):
        completions = _decoded(row, where).get("completions")
        if isinstance(completions, list):
            return [_parse_lists(row, {"completions": completions}, where)]
        good, bad = _texts(row.get("chosen")), _texts(row.get("rejected"))
        if good and bad and len(good) + len(bad) > 2:
            return [_parse_lists(row, {"chosen": good, "rejected": bad}, where, len(good))]
    example = parse_examples(row, where)[0]
    return [_make_candidates(row, example, example.completions, 1 if isinstance(example, Pair) else None)]


def _decoded(row: dict[str, Any], where: Where) -> dict[str, Any]:
    """A row whose lists are not text. Raises `RowError`."""
    try:
        return decode_text_values(row)
    except RowError as error:
        error.where = where
        raise


def _texts(value: Any) -> list[str]:
    """A text or a list of texts as a list, or nothing."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def _parse_lists(
    row: dict[str, Any], lists: dict[str, list[Any]], where: Where, num_preferred: int | None = None
) -> Candidates:
    """All completions of some columns, parsed like single ones."""
    answers = {f"{name}[{i}]": answer for name, column in lists.items() for i, answer in enumerate(column)}
    if not answers:
        raise RowError("is empty", kind="empty", field="completions", where=where)
    if not all(isinstance(answer, str) for answer in answers.values()):
        answers = {name: as_messages(answer) for name, answer in answers.items()}
    rest = {key: value for key, value in row.items() if key not in _LIST_COLUMNS}
    examples = [_parse_answer({**rest, "completion": answer}, name, where) for name, answer in answers.items()]
    if any(example.prompt != examples[0].prompt for example in examples):
        hint = "Write all of them in one way: texts, or lists of messages."
        raise RowError("the prompt reads otherwise before some answers", kind="type", where=where, hint=hint)
    return _make_candidates(row, examples[0], [example.completions[0] for example in examples], num_preferred)


def _parse_answer(row: dict[str, Any], name: str, where: Where) -> Example:
    """Parse a row with one completion, which error messages call `name`."""
    try:
        return parse_examples(row, where)[0]
    except RowError as error:
        if error.field and error.field.startswith("completion"):
            error.field = name + error.field.removeprefix("completion")
        raise


def _make_candidates(
    row: dict[str, Any], like: Example, answers: Sequence[Any], num_preferred: int | None
) -> Candidates:
    return Candidates(
        row, like.prompt, tuple(answers), num_preferred, like.tools, like.template_kwargs, like.is_hh_dialogue
    )
