"""What a person thinks of answers, and the rows that this makes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.messages import SYSTEM_ROLES
from mlx_dpo.errors import UserError
from mlx_dpo.labeling.verdict_merging import LABELLER_COLUMN
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.web.preference_file import PreferenceFile
from mlx_dpo.web.row_tally import RowTally

ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
EDITED_COLUMN = "edited"  # of rows with a text that a person wrote
KINDS = ("choice", "edit", "tie", "both_bad", "thumbs")


@dataclass(frozen=True)
class HumanVerdict:
    """A verdict on the completions of a prompt.

    Attributes:
        prompt: a text, or messages.
        completions: two to four of them, as the prompt text or messages; one or more for thumbs.
        kind: choice: `index` is better than the others. edit: `edited` is what `index` should have been. tie: none is
            better. both_bad: none is good. thumbs: `index` is good or not, by `is_good`.
        index: of the completion that is meant.
        edited: the completion as the person wrote it.
        is_good: of a thumb.
        columns: more columns of its rows, such as the prompt's tools.
    """

    prompt: TextOrMessages
    completions: Sequence[TextOrMessages]
    kind: str
    index: int | None = None
    edited: TextOrMessages | None = None
    is_good: bool | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any) -> HumanVerdict:
        """Read a verdict on answers that the page sent with it. Raises `UserError` if it is none."""
        if not isinstance(value, dict):
            raise UserError("a verdict must be an object")
        messages: Any = value.get("messages")
        answers: Any = value.get("answers")
        edited: Any = value.get("edited")
        _require(are_messages(messages), "messages", "must be turns with a role and a content, the user's last")
        _require(_are_texts(answers), "answers", "must be texts that are not empty")
        if value.get("kind") == "edit":
            _require(_are_texts([edited]), "edited", "must be a text that is not empty")
        is_text = len(messages) == 1
        prompt = messages[0]["content"] if is_text else messages

        def completion(text: str) -> TextOrMessages:
            return text if is_text else [{"role": "assistant", "content": text}]

        completions = list(map(completion, answers))
        return cls.on_completions(value, prompt, completions, edited=completion(edited))

    @classmethod
    def on_completions(
        cls,
        value: Mapping[str, Any],
        prompt: TextOrMessages,
        completions: Sequence[TextOrMessages],
        *,
        kinds: Sequence[str] = KINDS,
        edited: TextOrMessages | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> HumanVerdict:
        """Read a verdict on completions that are known.

        Args:
            value: what the page sent: `kind`, and what that needs of `index` and `is_good`.
            prompt: the prompt.
            completions: in the order in which the page shows them.
            kinds: the kinds that are accepted.
            edited: the completion that the person wrote, of an edit.
            columns: see `HumanVerdict`.

        Raises:
            UserError: it is no such verdict.
        """
        kind: Any = value.get("kind")
        index: Any = value.get("index")
        _require(kind in kinds, "kind", f"must be one of {', '.join(kinds)}")
        if kind in ("choice", "edit", "thumbs"):
            _require(is_integer(index) and 0 <= index < len(completions), "index", "must be the number of an answer")
        if kind in ("choice", "tie", "both_bad"):
            _require(len(completions) > 1, "answers", "must be two or more")
        if kind == "choice":
            are_other = any(completion != completions[index] for completion in completions)
            _require(are_other, "answers", "are the same: there is nothing to prefer")
        if kind == "edit":
            _require(edited != completions[index], "edited", "is the answer as it was")
        if kind == "thumbs":
            _require(isinstance(value.get("is_good"), bool), "is_good", "must be true or false")
        return cls(prompt, completions, kind, index, edited, value.get("is_good"), columns or {})


class VerdictFiles:
    """The file of preferences and the file of labels beside it."""

    def __init__(self, output: Path, labeller: str | None = None) -> None:
        """Name the files.

        Args:
            output: the file of preferences; that of labels has `.labels` before the end of its name.
            labeller: the name of the person, which each row then has in its column `labeller`.

        Raises:
            UserError: one can't be written.
        """
        self.preferences = PreferenceFile(output)
        self.labels = PreferenceFile(output.with_name(f"{output.stem}.labels{output.suffix}"))
        self.labeller = labeller
        self._tallies = (RowTally(self.preferences), RowTally(self.labels))

    def add(self, verdict: HumanVerdict) -> list[str]:
        """Write the rows of a verdict, and return their ids.

        Raises:
            UserError: a file can't be written.
        """
        file, rows = self._rows(verdict)
        columns = {**verdict.columns, **({LABELLER_COLUMN: self.labeller} if self.labeller else {})}
        rows = [{**row, **columns, "id": uuid.uuid4().hex} for row in rows]
        file.append_lines([to_json_bytes(row) + b"\n" for row in rows])
        return [str(row["id"]) for row in rows]

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
        prompt, completions = verdict.prompt, list(verdict.completions)
        if verdict.kind == "tie":
            scores = [0] * len(completions)  # equal ones make no pair
            return self.preferences, [{"prompt": prompt, "completions": completions, "scores": scores}]
        if verdict.kind in ("both_bad", "thumbs"):
            labels = dict.fromkeys(range(len(completions)), False)
            if verdict.kind == "thumbs":
                labels = {int(verdict.index or 0): bool(verdict.is_good)}
            return self.labels, [
                {"prompt": prompt, "completion": completions[i], "label": label} for i, label in labels.items()
            ]
        chosen = completions[int(verdict.index or 0)]
        if verdict.kind == "edit":
            row = {"prompt": prompt, "chosen": verdict.edited, "rejected": chosen, EDITED_COLUMN: True}
            return self.preferences, [row]
        rejected: list[TextOrMessages] = []
        for completion in completions:
            if completion not in (chosen, *rejected):
                rejected.append(completion)
        others = rejected[0] if len(rejected) == 1 else rejected
        return self.preferences, [{"prompt": prompt, "chosen": chosen, "rejected": others}]


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
