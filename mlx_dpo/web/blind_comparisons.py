"""A person's preferences between the answers of two policies, shown without their names, and the win rate they give."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.utils.statistics import win_rate_interval
from mlx_dpo.web.parsed_lines import ParsedLines
from mlx_dpo.web.preference_file import PreferenceFile, parse_row
from mlx_dpo.web.row_tally import prompt_key, text_or_messages
from mlx_dpo.web.verdicts import are_messages

if TYPE_CHECKING:  # it imports mlx-lm, which takes seconds
    from mlx_dpo.web.answer_generator import AnswerGenerator

KEPT_COMPARISONS = 100  # whose policies are remembered until there is a verdict
SCORES = {"tuned": 1.0, "tie": 0.5, "base": 0.0}


class BlindComparisons:
    """Remembers which answer is of which policy, and appends verdicts to a file beside that of the preferences."""

    def __init__(self, output: Path) -> None:
        """Name the file.

        Args:
            output: the file of preferences; that of comparisons has `.comparisons` before the end of its name.

        Raises:
            UserError: it can't be written.
        """
        self.file = PreferenceFile(output.with_name(f"{output.stem}.comparisons{output.suffix}"))
        self._rows = ParsedLines(self.file, _parse_comparison)
        self._shown: dict[str, dict[str, Any]] = {}  # by comparison: what its row says of the policies

    def remember(self, policies: Sequence[str], generator: AnswerGenerator) -> str:
        """Keep the policies of answers that were shown.

        Args:
            policies: [answers], "base" or "tuned".
            generator: has the adapter that is called "tuned".

        Returns:
            The id of this comparison.
        """
        comparison = secrets.token_hex(16)
        self._shown[comparison] = {
            "policies": list(policies),
            "adapter": str(generator.adapter_path),
            "adapter_digest": generator.adapter_digest,
        }
        while len(self._shown) > KEPT_COMPARISONS:
            self._shown.pop(next(iter(self._shown)))
        return comparison

    def policies(self, comparison: str) -> list[str] | None:
        """The policy of each answer of a comparison that has no verdict yet; None if it isn't known."""
        shown = self._shown.get(comparison)
        return None if shown is None else list(shown["policies"])

    def add(self, comparison: str, messages: Sequence[Message], answers: Sequence[str], winner: str) -> None:
        """Write a verdict on a comparison, and forget its policies. The row is on the disk when this returns.

        Args:
            comparison: its id, which the row gets too.
            messages: the conversation that was answered.
            answers: the answers.
            winner: "tuned", "base" or "tie".

        Raises:
            UserError: the comparison isn't known, or the file can't be written.
        """
        shown = self._shown.pop(comparison, None)
        if shown is None:
            message = "it isn't known any more which of these answers is whose"
            raise UserError(message, hint="Skip them, and ask again.")
        row = {"prompt": list(messages), "answers": list(answers), **shown, "winner": winner, "id": comparison}
        try:
            self.file.append_lines([to_json_bytes(row) + b"\n"])
        except UserError:
            self._shown[comparison] = shown
            raise

    def remove(self, row_ids: Sequence[str]) -> int:
        """Remove rows, and return how many there were. Raises `UserError`."""
        return sum(self.file.remove(row_id) for row_id in row_ids)

    def rows(self, adapter_digest: str | None) -> list[dict[str, Any]]:
        """The verdicts on an adapter. Raises `UserError` if the file can't be read."""
        return [row for row in self._rows.values() if row and row.get("adapter_digest") == adapter_digest]

    def prompts(self, adapter_digest: str | None) -> set[str]:
        """The `prompt_key` of each prompt on which an adapter has a verdict. Raises `UserError`."""
        return {prompt_key(text_or_messages(row["prompt"])) for row in self.rows(adapter_digest)}

    def summary(self, adapter_digest: str | None) -> dict[str, Any]:
        """Wins, and the win rate of an adapter with its 95% interval. Raises `UserError` if the file can't be read.

        A tie counts as half a win. Verdicts on the same prompt are not independent.
        """
        rows = self.rows(adapter_digest)
        counts = Counter(row["winner"] for row in rows)
        wins = {winner: counts[winner] for winner in SCORES}
        if not rows:
            return {**wins, "win_rate": None, "interval": None}
        scores = np.array([SCORES[row["winner"]] for row in rows])
        interval = win_rate_interval(scores, groups=[prompt_key(row["prompt"]) for row in rows])
        return {**wins, "win_rate": float(scores.mean()), "interval": list(interval)}


def _parse_comparison(line: bytes) -> dict[str, Any] | None:
    row = parse_row(line)
    return row if row and are_messages(row.get("prompt")) and row.get("winner") in list(SCORES) else None
