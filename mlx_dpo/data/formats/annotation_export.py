"""What formats of annotation tools' exports share: people choose among answers, and their choices are counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats.public_dataset import parse_scored
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat
from mlx_dpo.errors import RowError

PROMPT_NAMES = ("prompt", "instruction", "question", "query", "text", "input", "messages", "conversations")
_OTHER_NAMES = ("system", "system_prompt", "context", "id", "history", "tools")  # of texts that are not answers


class Annotation(NamedTuple):
    """A prompt, answers to it, and how much people liked each of them.

    Attributes:
        prompt: columns with the prompt, such as `prompt`, or `instruction` and `input`.
        answers: texts or messages.
        scores: of each, higher is better; all equal if nobody has judged.
    """

    prompt: Row
    answers: list[Any]
    scores: list[float]


class AnnotationExport(RowFormat):
    """A row of an annotation tool's export: a pair for every two answers of which one is preferred."""

    tool: str

    @abstractmethod
    def annotation(self, row: Row) -> Annotation:
        """What is in a row that matches. Raises `RowError`."""

    def parse(self, row: Row) -> list[Pair]:
        """The pairs, whose scores are no ratings; none if nobody has judged, or all answers are liked equally."""
        prompt, answers, scores = self.annotation(row)
        if len(set(scores)) < 2:
            return []
        return parse_scored(row, prompt, answers, scores)

    def label(self, row: Row) -> str:
        """The tool's name."""
        return self.tool

    def columns_read(self, row: Row) -> Iterable[str]:
        """All: what a tool writes beside the choice is about the annotation."""
        return row


def prompt_of_fields(fields: Row, where: str) -> Row:
    """The prompt among the texts that were shown, as columns. Raises `RowError`.

    Args:
        fields: the texts by name.
        where: the column that holds them, for the error.
    """
    name = next((name for name in PROMPT_NAMES if fields.get(name)), None)
    if name is None:
        hint = f"Name it one of: {', '.join(PROMPT_NAMES[:4])}."
        raise RowError("there is no prompt in it", kind="no prompt", field=where, hint=hint)
    system = {key: fields[key] for key in ("system", "system_prompt") if fields.get(key)}
    if name == "instruction":
        return {**system, **{key: fields[key] for key in ("instruction", "input") if fields.get(key)}}
    return {**system, "prompt": fields[name]}


def answer_names(fields: Row, prompt: Row) -> list[str]:
    """The names of the texts that are answers: all but the prompt, its input, and what describes them."""
    used = {name for name in PROMPT_NAMES if fields.get(name) in prompt.values()} | set(_OTHER_NAMES)
    return [name for name, value in fields.items() if name not in used and value and isinstance(value, (str, list))]
