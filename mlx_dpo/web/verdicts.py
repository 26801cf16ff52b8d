"""What a person thinks of answers, and the rows that this makes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mlx_dpo.data.messages import SYSTEM_ROLES, Message
from mlx_dpo.errors import UserError
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.web.preference_file import PreferenceFile
from mlx_dpo.web.row_tally import RowTally

ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
EDITED_COLUMN = "edited"  # of rows with a text that a person wrote
KINDS = ("choice", "edit", "tie", "both_bad", "thumbs")


@dataclass(frozen=True)
class HumanVerdict:
    """A verdict on the answers to a prompt.

    Attributes:
        messages: the conversation that was answered; its last turn is the user's.
        answers: the answers, two to four of them; one or more for thumbs.
        kind: choice: `index` is better than the others. edit: `edited` is what `index` should have been. tie: none is
            better. both_bad: none is good. thumbs: `index` is good or not, by `is_good`.
        index: of the answer that is meant.
        edited: the answer as the person wrote it.
        is_good: of a thumb.
    """

    messages: Sequence[Message]
    answers: Sequence[str]
    kind: str
    index: int | None = None
    edited: str | None = None
    is_good: bool | None = None

    @classmethod
    def from_json(cls, value: Any) -> HumanVerdict:
        """Read a verdict that the page sent. Raises `UserError` if it is none."""
        if not isinstance(value, dict):
            raise UserError("a verdict must be an object")
        messages: Any = value.get("messages")
        answers: Any = value.get("answers")
        kind: Any = value.get("kind")
        _require(kind in KINDS, "kind", f"must be one of {', '.join(KINDS)}")
        _require(are_messages(messages), "messages", "must be turns with a role and a content, the user's last")
        _require(_are_texts(answers), "answers", "must be texts that are not empty")
        verdict = cls(messages, answers, kind, value.get("index"), value.get("edited"), value.get("is_good"))
        if kind in ("choice", "edit", "thumbs"):
            is_index = is_integer(verdict.index) and 0 <= verdict.index < len(answers)
            _require(is_index, "index", "must be the number of an answer")
        if kind in ("choice", "tie", "both_bad"):
            _require(len(answers) > 1, "answers", "must be two or more")
        if kind == "edit":
            _require(_are_texts([verdict.edited]), "edited", "must be a text that is not empty")
            _require(verdict.edited != answers[verdict.index], "edited", "is the answer as it was")
        if kind == "thumbs":
            _require(isinstance(verdict.is_good, bool), "is_good", "must be true or false")
        return verdict


class VerdictFiles:
    """The file of preferences and the file of labels beside it."""

    def __init__(self, output: Path) -> None:
        """Name the files.

        Args:
            output: the file of preferences; that of labels has `.labels` before the end of its name.

        Raises:
            UserError: one can't be written.
        """
        self.preferences = PreferenceFile(output)
        self.labels = PreferenceFile(output.with_name(f"{output.stem}.labels{output.suffix}"))
        self._tallies = (RowTally(self.preferences), RowTally(self.labels))

    def add(self, verdict: HumanVerdict) -> list[str]:
        """Write the rows of a verdict, and return their ids.

        Raises:
            UserError: a file can't be written.
        """
        file, rows = self._rows(verdict)
        row_ids = [uuid.uuid4().hex for _ in rows]
        lines = [to_json_bytes({**row, "id": row_id}) + b"\n" for row, row_id in zip(rows, row_ids, strict=True)]
        file.append_lines(lines)
        return row_ids

    def remove(self, row_ids: Sequence[str]) -> int:
        """Remove rows, and return how many there were. Raises `UserError`."""
        return sum(self.preferences.remove(row_id) or self.labels.remove(row_id) for row_id in row_ids)

    def counts(self) -> dict[str, int]:
        """How many preferences, ties and labels the files have."""
        kinds = self._tallies[0].kinds()
        return {
            "preferences": kinds["preference"],
            "ties": kinds["tie"],
            "labels": self._tallies[1].kinds()["label"],
        }

    def judged_prompts(self) -> set[str]:
        """The `prompt_key` of each prompt that has a verdict. Raises `UserError`."""
        return self._tallies[0].prompts() | self._tallies[1].prompts()

    def _rows(self, verdict: HumanVerdict) -> tuple[PreferenceFile, list[dict[str, Any]]]:
        is_text = len(verdict.messages) == 1
        prompt = verdict.messages[0]["content"] if is_text else list(verdict.messages)

        def completion(text: str) -> Any:
            return text if is_text else [{"role": "assistant", "content": text}]

        if verdict.kind == "tie":
            scores = [0] * len(verdict.answers)  # equal ones make no pair
            row = {"prompt": prompt, "completions": list(map(completion, verdict.answers)), "scores": scores}
            return self.preferences, [row]
        if verdict.kind in ("both_bad", "thumbs"):
            labels = dict.fromkeys(range(len(verdict.answers)), False)
            if verdict.kind == "thumbs":
                labels = {int(verdict.index or 0): bool(verdict.is_good)}
            return self.labels, [
                {"prompt": prompt, "completion": completion(verdict.answers[i]), "label": label}
                for i, label in labels.items()
            ]
        index = int(verdict.index or 0)
        if verdict.kind == "edit":
            chosen, rejected = str(verdict.edited), [verdict.answers[index]]
        else:
            chosen = verdict.answers[index]
            rejected = list(dict.fromkeys(text for text in verdict.answers if text != chosen))
            _require(bool(rejected), "answers", "are the same: there is nothing to prefer")
        others = list(map(completion, rejected))
        row = {"prompt": prompt, "chosen": completion(chosen), "rejected": others[0] if len(others) == 1 else others}
        return self.preferences, [row | ({EDITED_COLUMN: True} if verdict.kind == "edit" else {})]


def are_messages(value: Any) -> bool:
    """Whether a value is a conversation of texts whose last turn is the user's."""
    if not isinstance(value, list) or not value:
        return False
    turns = [turn for turn in value if isinstance(turn, dict) and set(turn) == {"role", "content"}]
    are_known = len(turns) == len(value) and all(turn["role"] in ROLES for turn in turns)
    return are_known and _are_texts([turn["content"] for turn in turns]) and turns[-1]["role"] == "user"


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise UserError(message, field=field)
