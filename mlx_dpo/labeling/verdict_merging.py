"""Verdicts of several people on the same completions, as one file of pairs, and how far these people agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.examples import Candidates, Example, Pair
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import UserError, Where
from mlx_dpo.labeling.rows_to_label import RowToLabel, parse_row_to_label
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.utils.atomic_write import write_new
from mlx_dpo.utils.statistics import win_rate_interval

LABELLER_COLUMN = "labeller"
Key = tuple[str, str, str]  # JSON of the prompt and of the two completions, in the order of these texts


@dataclass
class MergedComparison:
    """Two completions of a prompt, and what each person thinks of them.

    Attributes:
        columns: of the row: the prompt, and what else the chat template takes.
        completions: the two.
        votes: by labeller, 1 if the first completion is better, -1 if the second is, 0 for a tie.
    """

    columns: dict[str, Any]
    completions: tuple[TextOrMessages, TextOrMessages]
    votes: dict[str, int] = field(default_factory=dict)

    @property
    def majority(self) -> int:
        """1, -1, or 0 if no completion has more votes than the other."""
        return int(np.sign(sum(self.votes.values())))

    def to_row(self) -> dict[str, Any]:
        """The pair that most people prefer, with `votes`: for it, against it, ties."""
        better, worse = self.completions if self.majority > 0 else reversed(self.completions)
        votes = [self.majority * vote for vote in self.votes.values()]
        counts = [votes.count(value) for value in (1, -1, 0)]
        return {**self.columns, "chosen": better, "rejected": worse, "votes": counts}


def merge_verdicts(files: Sequence[str], output: str | Path) -> dict[str, Any]:
    """Write the pairs that most people agree on, and measure their agreement.

    Whose verdict a row is, its column `labeller` has; without one it is the file's name. If a person has judged the
    same completions again, the last verdict counts.

    Args:
        files: rows of preferences in any format, as `collect` and `label` write them; ties are rows whose completions
            have equal `scores`.
        output: the JSONL file of pairs to write; it must not exist yet.

    Returns:
        `labellers`, the number of comparisons that each has judged; `comparisons`; `pairs`, the number of rows written;
        `undecided`, comparisons without a majority, which are left out; `repeated`, how often a person judged the same
        completions again, and `changed`, how often with another verdict; `agreement`, a mapping for each two labellers
        that have comparisons in common: their names, and what `vote_agreement` returns.

    Raises:
        UserError: a file can't be read or has no preferences, or the output can't be written.
        RowError: a row can't be read.
    """
    comparisons: dict[Key, MergedComparison] = {}
    counts: Counter[str] = Counter()
    for file in files:
        file_counts = _read_file(file, comparisons)
        counts += file_counts
        if not file_counts["votes"]:
            raise UserError("holds no preferences", where=Where(file), hint="Give files of pairs, or of scored rows.")
    decided = [comparison for comparison in comparisons.values() if comparison.majority]
    with write_new(output) as partial:
        partial.write_bytes(b"".join(to_json_bytes(comparison.to_row()) + b"\n" for comparison in decided))
    labellers = Counter(name for comparison in comparisons.values() for name in comparison.votes)
    return {
        "labellers": dict(labellers),
        "comparisons": len(comparisons),
        "pairs": len(decided),
        "undecided": len(comparisons) - len(decided),
        "repeated": counts["repeated"],
        "changed": counts["changed"],
        "agreement": list(_agreements(comparisons, sorted(labellers))),
    }


def _read_file(file: str, comparisons: dict[Key, MergedComparison]) -> Counter[str]:
    """Add the verdicts of a file. Returns how many `votes` there are, `repeated` and `changed` ones among them."""
    counts: Counter[str] = Counter()
    with open_rows(file) as stream:
        for number, _, line in stream.lines:
            where = Where(stream.name, number)
            row = parse_json_line(line, where)
            labeller = row.get(LABELLER_COLUMN) if isinstance(row, dict) else None
            name = labeller if isinstance(labeller, str) and labeller else Path(file).stem
            for key, comparison, vote in row_votes(row, where):
                votes = comparisons.setdefault(key, comparison).votes
                counts["votes"] += 1
                counts["repeated"] += name in votes
                counts["changed"] += votes.get(name, vote) != vote
                votes[name] = vote
    return counts


def row_votes(row: Any, where: Where) -> Iterator[tuple[Key, MergedComparison, int]]:
    """The comparisons of a row, each with its key and its vote: 1 if the first completion is better, -1, or 0.

    Raises:
        RowError: the row can't be read.
    """
    if isinstance(row, dict) and row.get("completions") is not None:  # it may have ties
        for candidates in parse_row_to_label(row, where):
            if not isinstance(candidates, Candidates):
                continue
            parsed = RowToLabel.from_candidates(candidates, drop_truncated=False)
            grades = parsed.grades or ()
            for i, j in combinations(range(len(grades)), 2):
                vote = int(np.sign(grades[i] - grades[j]))
                yield from _vote(candidates, (parsed.completions[i], parsed.completions[j]), vote)
        return
    for example in parse_examples(row, where):
        if isinstance(example, Pair):
            yield from _vote(example, (example.chosen, example.rejected), 1)


def _vote(
    example: Example, completions: tuple[TextOrMessages, TextOrMessages], vote: int
) -> Iterator[tuple[Key, MergedComparison, int]]:
    """A vote, 1 if the first of two completions is better; none if they are equal."""
    columns = {"prompt": example.prompt, "tools": example.tools, "chat_template_kwargs": example.template_kwargs}
    columns = {name: value for name, value in columns.items() if value}
    first, second = map(_json, completions)
    if first > second:
        completions, vote = (completions[1], completions[0]), -vote
    if first != second:
        yield (_json(columns), min(first, second), max(first, second)), MergedComparison(columns, completions), vote


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _agreements(comparisons: Mapping[Key, MergedComparison], labellers: Sequence[str]) -> Iterable[dict[str, Any]]:
    for pair in combinations(labellers, 2):
        votes = [{key: c.votes[name] for key, c in comparisons.items() if name in c.votes} for name in pair]
        if agreement := vote_agreement(*votes):
            yield {"labellers": list(pair), **agreement}


def vote_agreement(first: Mapping[Key, int], second: Mapping[Key, int]) -> dict[str, Any] | None:
    """How far two people agree on the comparisons that both have judged.

    Args:
        first: one's votes, 1, -1 or 0, by comparison.
        second: the other one's.

    Returns:
        `compared`, the number of comparisons; `agreement`, the share of equal votes, with its 95% `interval`, where
        comparisons of the same prompt count as dependent; and Cohen's `kappa`. None if they have none in common.
    """
    shared = [key for key in first if key in second]
    if not shared:
        return None
    votes = np.array([[first[key], second[key]] for key in shared])
    equal = (votes[:, 0] == votes[:, 1]).astype(np.float64)
    return {
        "compared": len(shared),
        "agreement": float(equal.mean()),
        "interval": list(win_rate_interval(equal, groups=[key[0] for key in shared])),
        "kappa": vote_kappa(votes),
    }


def vote_kappa(votes: np.ndarray) -> float:
    """Cohen's kappa (1960) of two people's votes, where each two completions count in both orders.

    With t and u the shares of their ties, chance agreement is (1 - t)(1 - u) / 2 + t u.

    Args:
        votes: [comparisons, 2] 1, -1, or 0 for a tie.

    Returns:
        1 for full agreement, 0 for that of chance; NaN if both always have ties.
    """
    ties = (votes == 0).mean(axis=0)
    expected = float((1 - ties[0]) * (1 - ties[1]) / 2 + ties[0] * ties[1])
    observed = float((votes[:, 0] == votes[:, 1]).mean())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")
