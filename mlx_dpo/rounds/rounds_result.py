"""The results of rounds, which of them is best, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RoundsResult:
    """The results of rounds.

    Attributes:
        rounds: of each round what its evaluation.json has.
        best: the number of the round with the highest lower end of the win rate's interval; None if none has trained.
        adapter: the adapter of that round.
        stopped: why there are not as many rounds as allowed; None if there are.
        page: the page over the rounds.
    """

    rounds: list[dict[str, Any]]
    best: int | None
    adapter: Path | None
    stopped: str | None
    page: Path

    def to_mapping(self) -> dict[str, Any]:
        """The results as plain values."""
        return {"rounds": self.rounds, "best_round": self.best, "stopped": self.stopped}


def best_round(rounds: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of the round whose win rate against the start has the highest lower end of its interval."""
    measured = [values for values in rounds if "against_start" in values]
    return max(measured, key=_lower_end)["round"] if measured else None  # of equal ones the first


def reason_to_stop(rounds: Sequence[Mapping[str, Any]], early_stop: bool) -> str | None:
    """Why no further round should follow; None if one may.

    Args:
        rounds: the results of the rounds.
        early_stop: whether a win rate that does not rise is a reason: the lower end of its 95% interval, against the
            policy at the start, is not above that of every round before.
    """
    if not rounds:
        return None
    if "against_start" not in rounds[-1]:
        return f"the judge prefers no completion in round {rounds[-1]['round']}, so there are no pairs to train on"
    if early_stop and len(rounds) > 1 and _lower_end(rounds[-1]) <= max(map(_lower_end, rounds[:-1])):
        return f"the win rate no longer rises in round {rounds[-1]['round']}"
    return None


def _lower_end(values: Mapping[str, Any]) -> float:
    low = values["against_start"]["win_rate_interval"][0]
    return float("-inf") if low is None or low != low else float(low)
