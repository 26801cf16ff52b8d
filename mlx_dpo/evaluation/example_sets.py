"""Which examples a run trains on, which it holds out, and where the reference's log-probs of them come from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import Encoder
from mlx_dpo.data.column_mapping import renaming
from mlx_dpo.data.encoded_examples import EncodedPairs, PairList, PairSource
from mlx_dpo.data.example_sources import OneKind, PairFile, find_data, is_json_lines
from mlx_dpo.data.micro_batches import hold_out
from mlx_dpo.data.row_formats import Completion, Example, ExamplesOf, examples_of, labelled_of, pairs_of, scored_of
from mlx_dpo.distributed.communicator import ALONE, Group
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.objectives import Loss
from mlx_dpo.reference.reference_policy import ReferenceLogps

Rows = Iterable[Any]
TRAIN, HELD_OUT = "train", "held_out"


PairSets = dict[str, "PairSet"]  # by TRAIN and, where pairs are held out, HELD_OUT


@dataclass(frozen=True)
class PairSet:
    """Examples to train on or to measure: which of a source's, and the reference's log-probs of them."""

    pairs: EncodedPairs
    indices: np.ndarray
    reference: ReferenceLogps

    @classmethod
    def of(cls, pairs: EncodedPairs, indices: np.ndarray) -> PairSet:
        """The examples `indices`, with no log-prob known yet."""
        return cls(pairs, indices, ReferenceLogps(len(pairs), len(pairs.source[0].answers)))

    @property
    def single(self) -> bool:
        """Whether they are single completions."""
        return isinstance(self.pairs.source[0], Completion)

    @property
    def what(self) -> str:
        """What they are called."""
        return "completions" if self.single else "pairs"


def reader_of(loss: Loss) -> ExamplesOf:
    """How rows are read for a loss: pairs, with scores where it asks for them, or single completions too."""
    if any(one.scores for one in loss.objectives):
        return scored_of
    if not loss.unpaired:
        return pairs_of
    return examples_of if loss.imitates else labelled_of


def open_pair_sets(
    config: TrainConfig,
    loss: Loss,
    tokenizer: Any,
    rows: Rows | None,
    valid_rows: Rows | None,
    say: Callable[[str], None],
    bad: list[RowError] | None = None,
    group: Group = ALONE,
) -> PairSets:
    """The examples to train on and to hold out, of a config's files, or of rows in memory. Raises `UserError`.

    Args:
        say: hears how far the reading of a file is.
        bad: takes the rows that can't be read; without it the first of them raises.
        group: its ranks share the work of encoding all once.
    """
    encoder = Encoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    read = renaming(config.columns, reader_of(loss))
    source, held_source = (
        _open_files(config, read, say, bad, group) if rows is None else _open_rows(rows, valid_rows, read, bad)
    )
    pairs = EncodedPairs(source, encoder, bad)
    trained = _usable(pairs, group)
    if held_source is not None:
        held = EncodedPairs(held_source, encoder, bad)
        if type(held_source[0]) is not type(source[0]):
            hint = "Both are to hold pairs, or both single completions."
            raise UserError(
                "the held-out rows are of another kind than those to train on", where=Where(held_source.name), hint=hint
            )
        return {TRAIN: PairSet.of(pairs, trained), HELD_OUT: PairSet.of(held, _usable(held, group))}
    rest, set_aside = hold_out(len(trained), config.valid_pairs, config.seed)
    sets = {TRAIN: PairSet.of(pairs, trained[rest])}
    return sets | {HELD_OUT: PairSet.of(pairs, trained[set_aside])} if len(set_aside) else sets


def open_measured(config: TrainConfig, rows: Rows | None, read: ExamplesOf) -> PairSource:
    """The examples to measure: of rows in memory, or of a config's file; of a folder, the held-out ones if it has some.

    Raises `UserError`.
    """
    if rows is not None:
        return pairs_in_memory(rows, "rows", read)
    if not config.data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    file, held_out = find_data(config.data, None)
    return PairFile.open(held_out or file, read=read)


def pairs_in_memory(rows: Rows, name: str, read: ExamplesOf = pairs_of, bad: list[RowError] | None = None) -> PairList:
    """The examples of rows in memory, in any accepted shape. Raises `RowError`, or puts them into `bad`."""
    one_kind, found, lines = OneKind(), list[Example](), list[int]()
    for i, row in enumerate(rows, 1):
        where = Where(name, i)
        try:
            found += one_kind.checked(read(row, where), where)
        except RowError as error:
            if bad is None:
                raise
            bad.append(error)
        lines += [i] * (len(found) - len(lines))
    if not found:
        raise UserError("there are no pairs in it", where=Where(name))
    return PairList(found, name, lines)


def _open_rows(
    rows: Rows, valid_rows: Rows | None, read: ExamplesOf, bad: list[RowError] | None
) -> tuple[PairSource, PairSource | None]:
    held = None if valid_rows is None else pairs_in_memory(valid_rows, "valid_rows", read, bad)
    return pairs_in_memory(rows, "rows", read, bad), held


def _open_files(
    config: TrainConfig, read: ExamplesOf, say: Callable[[str], None], bad: list[RowError] | None, group: Group
) -> tuple[PairSource, PairSource | None]:
    if not config.data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    data, valid = find_data(config.data, config.valid_data)
    trained = _open_file(data, read, say, bad, group)
    return trained, None if valid is None else _open_file(valid, read, say, bad, group)


def _open_file(
    name: str, read: ExamplesOf, say: Callable[[str], None], bad: list[RowError] | None, group: Group
) -> PairFile:
    """A file of rows; of JSON lines rank 0 looks at all, and the others at those they train on."""
    shared = group.size > 1 and is_json_lines(name)
    if shared and not group.leads:
        return PairFile.by_index(name, group.mail({})[0], read)
    say(f"Reading {name}")
    on_problem = None if bad is None else bad.append
    file = PairFile.open(name, on_problem, lambda share: say(f"Reading {name}: {share:.0%}"), read)
    if shared:
        group.mail(file.index())
    return file


def _usable(pairs: EncodedPairs, group: Group) -> np.ndarray:
    """Indices of the examples that can be trained on, each rank encoding its share to see."""
    bad = [] if pairs.bad is None else pairs.bad
    found, usable = len(bad), pairs.usable(group.share)
    parts = group.parts({"usable": usable, "marks": pairs.marks})
    usable = functools.reduce(np.intersect1d, [part["usable"] for part in parts])
    pairs.marks = np.any([part["marks"] for part in parts], axis=0)
    if group.split:
        told = group.told([error.to_mapping() for error in bad[found:]])
        refused = [RowError.from_mapping(error) for errors in told for error in errors]
        bad[found:] = sorted(refused, key=lambda error: error.where.line or 0 if error.where else 0)
    if not len(usable):
        hint = f"Raise --max-length from {pairs.encoder.max_length}, or use --overlong truncate."
        raise UserError("every row is too long, so none is left", where=Where(pairs.source.name), hint=hint)
    return usable
