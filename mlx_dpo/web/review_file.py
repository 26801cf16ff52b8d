"""A file whose completions are judged again: comparisons of two to four of them, and what the file says of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.examples import Candidates, Pair
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.labeling.rows_to_label import parse_row_to_label
from mlx_dpo.labeling.verdict_merging import Key, row_votes
from mlx_dpo.web.answer_request import MAX_ANSWERS

_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class ReviewComparison:
    """Completions of a prompt, to be shown side by side.

    Attributes:
        prompt: the prompt.
        completions: two to four that differ.
        columns: what else the chat template takes: `tools`, `chat_template_kwargs`.
    """

    prompt: TextOrMessages
    completions: tuple[TextOrMessages, ...]
    columns: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """A digest of the prompt and the completions, in whatever order."""
        return _key(self.prompt, self.columns, self.completions)

    def shown_to(self, labeller: str, count: int) -> list[TextOrMessages]:
        """The completions in the order in which a person sees them, which is always the same.

        Args:
            labeller: the name of the person.
            count: how often the person has judged them.
        """
        return _shuffled(self.completions, self.key, labeller, count)

    def is_repeated_for(self, labeller: str, share: float) -> bool:
        """Whether it is in the share of comparisons that a person gets a second time."""
        drawn = int.from_bytes(_digest("repeat", self.key, labeller)[:8], "big")
        return drawn < share * 2**64


@dataclass
class ReviewFile:
    """What is compared, in the order of the file.

    Attributes:
        path: the file.
        comparisons: of the rows; the same completions of a prompt occur once.
        votes: 1, -1 or 0 for each two completions that the file has a preference or a tie for.
        num_single: rows with fewer than two completions that differ.
        num_bad: rows that can't be read.
        problem: what is wrong with the first of these, a sentence.
    """

    path: str
    comparisons: list[ReviewComparison] = field(default_factory=list)
    votes: dict[Key, int] = field(default_factory=dict)
    num_single: int = 0
    num_bad: int = 0
    problem: str | None = None

    @classmethod
    def read(cls, path: str) -> ReviewFile:
        """Read the rows of a file, in any format.

        Raises:
            UserError: it can't be read, or has no row to judge.
        """
        review = cls(path)
        known: set[str] = set()
        with open_rows(path) as stream:
            while True:
                try:
                    number, _, line = next(stream.lines)
                    where = Where(stream.name, number)
                    review._add(parse_json_line(line, where), where, known)
                except StopIteration:
                    break
                except RowError as error:
                    review.num_bad += 1
                    review.problem = review.problem or str(error).partition("\n")[0]
        if not review.comparisons:
            hint = review.problem or "Each needs a prompt and two different completions."
            raise UserError("has no rows to judge", where=Where(path), hint=hint)
        return review

    def _add(self, row: Any, where: Where, known: set[str]) -> None:
        comparisons = list(_comparisons(row, where))
        with suppress(RowError):  # lists of several chosen texts have completions, but are no pairs
            self.votes |= {key: vote for key, _, vote in row_votes(row, where)}
        self.num_single += not comparisons
        for comparison in comparisons:
            if comparison.key not in known:
                known.add(comparison.key)
                self.comparisons.append(comparison)


def row_key(row: Mapping[str, Any]) -> str | None:
    """The key of the comparison that a row of verdicts is of; None if it is of none."""
    completions = row.get("completions")
    if completions is None:
        rejected = row.get("rejected")
        is_several = isinstance(rejected, list) and bool(rejected) and not isinstance(rejected[0], dict)
        completions = [row.get("chosen"), *(rejected if is_several and isinstance(rejected, list) else [rejected])]
    if not isinstance(completions, list):
        return None
    columns = {name: row[name] for name in _TEMPLATE_COLUMNS if name in row}
    return _key(row.get("prompt"), columns, completions)


def default_output(path: str, labeller: str) -> Path:
    """The file of a person's verdicts, with their name in its own: beside the file, or here for one of the Hub."""
    file = Path(path) if Path(path).exists() else Path(Path(path).name)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in labeller).strip(".") or "verdicts"
    return file.with_name(f"{file.name.removesuffix('.gz').rpartition('.')[0] or file.name}.{name}.jsonl")


def _comparisons(row: Any, where: Where) -> Iterator[ReviewComparison]:
    for candidates in parse_row_to_label(row, where):
        if isinstance(candidates, Candidates):
            columns = dict(zip(_TEMPLATE_COLUMNS, (candidates.tools, candidates.template_kwargs), strict=True))
            columns = {name: value for name, value in columns.items() if value}
            completions = [*candidates.completions, *_paired_completions(row, where, candidates.prompt)]
            different = list({_json(completion): completion for completion in completions}.values())
            for group in _groups(different, candidates.prompt):
                yield ReviewComparison(candidates.prompt, tuple(group), columns)


def _paired_completions(row: Any, where: Where, prompt: TextOrMessages) -> Iterator[TextOrMessages]:
    """The completions of all pairs of a row."""
    with suppress(RowError):
        for example in parse_examples(row, where):
            if isinstance(example, Pair) and example.prompt == prompt:
                yield from example.completions


def _groups(completions: Sequence[TextOrMessages], prompt: TextOrMessages) -> Iterator[list[TextOrMessages]]:
    """Completions in groups of two to four that are of equal size, or differ by one, and are the same for everybody."""
    if len(completions) < 2:
        return
    drawn = list(completions) if len(completions) <= MAX_ANSWERS else _shuffled(completions, _json(prompt))
    num_groups = -(-len(drawn) // MAX_ANSWERS)
    for i in range(num_groups):
        yield drawn[i * len(drawn) // num_groups : (i + 1) * len(drawn) // num_groups]


def _shuffled(values: Sequence[TextOrMessages], *seed: Any) -> list[TextOrMessages]:
    return sorted(values, key=lambda value: _digest(*seed, value))


def _key(prompt: Any, columns: Mapping[str, Any], completions: Sequence[Any]) -> str:
    return _digest(prompt, columns, sorted(map(_json, completions))).hex()


def _digest(*values: Any) -> bytes:
    return hashlib.blake2b(_json(values).encode(), digest_size=16).digest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
