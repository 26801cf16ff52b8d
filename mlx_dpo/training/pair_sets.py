"""Which pairs a run trains on, which it holds out, and where the reference's log-probs of them come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.batches import hold_out
from mlx_dpo.data.chat import Encoder
from mlx_dpo.data.columns import renaming
from mlx_dpo.data.pairs import EncodedPairs, PairList, PairSource
from mlx_dpo.data.records import pairs_of
from mlx_dpo.data.sources import PairFile, PairsOf, find_data
from mlx_dpo.errors import UserError, Where
from mlx_dpo.model.reference import ReferenceLogps

Rows = Iterable[Any]
TRAIN, HELD_OUT = "train", "held_out"


PairSets = dict[str, "PairSet"]  # by TRAIN and, where pairs are held out, HELD_OUT


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on or to measure: which of a source's, and the reference's log-probs of them."""

    pairs: EncodedPairs
    indices: np.ndarray
    reference: ReferenceLogps

    @classmethod
    def of(cls, pairs: EncodedPairs, indices: np.ndarray) -> PairSet:
        """The pairs `indices`, with no log-prob known yet."""
        return cls(pairs, indices, ReferenceLogps(len(pairs)))


def open_pair_sets(
    config: TrainConfig,
    tokenizer: Any,
    rows: Rows | None,
    valid_rows: Rows | None,
    say: Callable[[str], None],
) -> PairSets:
    """The pairs to train on and to hold out, of a config's files, or of rows in memory. Raises `UserError`.

    `say` hears how far the reading of a file is.
    """
    encoder = Encoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    read = renaming(config.columns, pairs_of)
    source, held_source = _open_files(config, say, read) if rows is None else _open_rows(rows, valid_rows, read)
    pairs = EncodedPairs(source, encoder)
    trained = _usable(pairs)
    if held_source is not None:
        held = EncodedPairs(held_source, encoder)
        return {TRAIN: PairSet.of(pairs, trained), HELD_OUT: PairSet.of(held, _usable(held))}
    rest, set_aside = hold_out(len(trained), config.valid_pairs, config.seed)
    sets = {TRAIN: PairSet.of(pairs, trained[rest])}
    return sets | {HELD_OUT: PairSet.of(pairs, trained[set_aside])} if len(set_aside) else sets


def pairs_in_memory(rows: Rows, name: str, read: PairsOf = pairs_of) -> PairList:
    """The pairs of rows in memory, in any accepted shape. Raises `RowError`."""
    pairs = PairList([pair for i, row in enumerate(rows, 1) for pair in read(row, Where(name, i))], name)
    if not len(pairs):
        raise UserError("there are no pairs in it", where=Where(name))
    return pairs


def _open_rows(rows: Rows, valid_rows: Rows | None, read: PairsOf) -> tuple[PairSource, PairSource | None]:
    held = None if valid_rows is None else pairs_in_memory(valid_rows, "valid_rows", read)
    return pairs_in_memory(rows, "rows", read), held


def _open_files(config: TrainConfig, say: Callable[[str], None], read: PairsOf) -> tuple[PairSource, PairSource | None]:
    if not config.data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    data, valid = find_data(config.data, config.valid_data)
    return _open_file(data, say, read), None if valid is None else _open_file(valid, say, read)


def _open_file(name: str, say: Callable[[str], None], read: PairsOf) -> PairFile:
    say(f"Reading {name}")
    return PairFile.open(name, progress=lambda share: say(f"Reading {name}: {share:.0%}"), read=read)


def _usable(pairs: EncodedPairs) -> np.ndarray:
    usable = pairs.usable()
    if not len(usable):
        hint = f"Raise --max-length from {pairs.encoder.max_length}, or use --overlong truncate."
        raise UserError("every pair is too long, so none is left", where=Where(pairs.source.name), hint=hint)
    return usable
