"""What rows are read as: preference pairs, single completions, and answers to be scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.data_warnings import RowWarning

SCORE_COLUMNS = (  # columns of a pair's scores
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: of two answers to a prompt, the one that was preferred.

    Attributes:
        prompt, chosen, rejected: all texts, or all lists of messages (each at least `role` and `content`).
        tools: what the model could call, as the chat template takes it.
        template_kwargs: more variables for the chat template.
        is_hh_dialogue: whether the messages came from one text in Anthropic HH's form; without a chat template they
            are written in that form again.
        margin: the target reward margin, from the row's `margin` column.
        scores: (chosen, rejected) scores of the row, if it has them.
        chosen_is_reference: of a pair with a completion sampled from the reference, whether that is the chosen one.
        warnings: about the row; if it holds several pairs, the first one has them.
    """

    prompt: TextOrMessages
    chosen: TextOrMessages
    rejected: TextOrMessages
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    is_hh_dialogue: bool = field(default=False, compare=False)
    margin: float | None = field(default=None, compare=False)
    scores: tuple[float, float] | None = field(default=None, compare=False)
    chosen_is_reference: bool = field(default=False, compare=False)
    warnings: tuple[RowWarning, ...] = field(default=(), compare=False)

    @property
    def completions(self) -> tuple[TextOrMessages, ...]:
        """The chosen and the rejected one."""
        return self.chosen, self.rejected

    def to_row(self) -> dict[str, Any]:
        """The pair as a row of the canonical shape."""
        row: dict[str, Any] = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        if self.margin is not None:
            row["margin"] = self.margin
        if self.scores is not None:
            row |= dict(zip(SCORE_COLUMNS[0], self.scores, strict=True))
        return row | _template_columns(self)


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt; other attributes as those of `Pair`.

    Attributes:
        desirable: its label; None where it has none, since it is shown as an example to follow (a demonstration).
        win_rate: of a completion sampled while training, from 0 to 1, how often a judge prefers it to others.
    """

    prompt: TextOrMessages
    completion: TextOrMessages
    desirable: bool | None = None
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    is_hh_dialogue: bool = field(default=False, compare=False)
    win_rate: float | None = field(default=None, compare=False)
    warnings: tuple[RowWarning, ...] = field(default=(), compare=False)

    @property
    def completions(self) -> tuple[TextOrMessages, ...]:
        """The one it is."""
        return (self.completion,)

    def to_row(self) -> dict[str, Any]:
        """The completion as a row of the canonical shape."""
        label = {} if self.desirable is None else {"label": self.desirable}
        return {"prompt": self.prompt, "completion": self.completion, **label, **_template_columns(self)}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without completions; attributes as those of `Pair`."""

    prompt: TextOrMessages
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    is_hh_dialogue: bool = field(default=False, compare=False)

    @property
    def completions(self) -> tuple[TextOrMessages, ...]:
        """Return an empty tuple."""
        return ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Any number of completions of a prompt, to be scored; other attributes as those of `Pair`.

    Attributes:
        row: what they were read from.
        num_preferred: how many completions, from the first, are known to be better than all others; None if unknown.
    """

    row: dict[str, Any] = field(compare=False)
    prompt: TextOrMessages
    completions: tuple[TextOrMessages, ...]
    num_preferred: int | None = None
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    is_hh_dialogue: bool = field(default=False, compare=False)
    warnings: tuple[RowWarning, ...] = field(default=(), compare=False)

    def to_row(self) -> dict[str, Any]:
        """The row."""
        return self.row


Example = Pair | Completion | Candidates


def _template_columns(example: Example) -> dict[str, Any]:
    columns = {"tools": example.tools, "chat_template_kwargs": example.template_kwargs}
    return {name: value for name, value in columns.items() if value}
