"""Which examples a run trains on, which it holds out, and where the reference's log-probs of them come from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.encoded_examples import EncodedExamples, ExampleList, ExampleSource
from mlx_dpo.data.example_sources import ExampleFile, ExampleKindCheck, find_data_files, is_plain_jsonl
from mlx_dpo.data.micro_batches import split_held_out
from mlx_dpo.data.row_formats import (
    Completion,
    Example,
    RowParser,
    parse_examples,
    parse_labelled_examples,
    parse_pairs,
    parse_scored_pairs,
)
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps

Rows = Iterable[Any]
TRAIN, HELD_OUT = "train", "held_out"


ExampleSets = dict[str, "ExampleSet"]  # by TRAIN and, where pairs are held out, HELD_OUT


@dataclass(frozen=True)
class ExampleSet:
    """Examples to train on or to measure: which of a source's, and the reference's log-probs of them."""

    examples: EncodedExamples
    indices: np.ndarray
    reference: ReferenceLogps

    @classmethod
    def from_indices(cls, pairs: EncodedExamples, indices: np.ndarray) -> ExampleSet:
        """The examples `indices`, with no log-prob known yet."""
        return cls(pairs, indices, ReferenceLogps(len(pairs), len(pairs.source[0].completions)))

    @property
    def is_unpaired(self) -> bool:
        """Whether they are single completions."""
        return isinstance(self.examples.source[0], Completion)

    @property
    def example_kind(self) -> str:
        """What they are called."""
        return "completions" if self.is_unpaired else "pairs"


def example_reader(loss: WeightedLoss) -> RowParser:
    """How rows are read for a loss: pairs, with scores where it asks for them, or single completions too."""
    if any(one.needs_scores for one in loss.loss_functions):
        return parse_scored_pairs
    if not loss.unpaired:
        return parse_pairs
    return parse_examples if loss.likelihood_only else parse_labelled_examples


def open_example_sets(
    config: TrainConfig,
    loss: WeightedLoss,
    tokenizer: Any,
    rows: Rows | None,
    valid_rows: Rows | None,
    on_progress: Callable[[str], None],
    skipped_rows: list[RowError] | None = None,
    communicator: Communicator = SINGLE_PROCESS,
) -> ExampleSets:
    """The examples to train on and to hold out, of a config's files, or of rows in memory. Raises `UserError`.

    Args:
        say: hears how far the reading of a file is.
        bad: takes the rows that can't be read; without it the first of them raises.
        group: its ranks share the work of encoding all once.
    """
    encoder = ExampleEncoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    read = with_renamed_columns(config.columns, example_reader(loss))
    source, held_source = (
        _open_files(config, read, on_progress, skipped_rows, communicator)
        if rows is None
        else _open_rows(rows, valid_rows, read, skipped_rows)
    )
    pairs = EncodedExamples(source, encoder, skipped_rows)
    trained = _usable(pairs, communicator)
    if held_source is not None:
        held = EncodedExamples(held_source, encoder, skipped_rows)
        if type(held_source[0]) is not type(source[0]):
            hint = "Both are to hold pairs, or both single completions."
            raise UserError(
                "the held-out rows are of another kind than those to train on", where=Where(held_source.name), hint=hint
            )
        return {
            TRAIN: ExampleSet.from_indices(pairs, trained),
            HELD_OUT: ExampleSet.from_indices(held, _usable(held, communicator)),
        }
    rest, set_aside = split_held_out(len(trained), config.valid_pairs, config.seed)
    sets = {TRAIN: ExampleSet.from_indices(pairs, trained[rest])}
    return sets | {HELD_OUT: ExampleSet.from_indices(pairs, trained[set_aside])} if len(set_aside) else sets


def open_evaluation_source(config: TrainConfig, rows: Rows | None, read: RowParser) -> ExampleSource:
    """The examples to measure: of rows in memory, or of a config's file; of a folder, the held-out ones if it has some.

    Raises `UserError`.
    """
    if rows is not None:
        return examples_from_rows(rows, "rows", read)
    if not config.data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    file, held_out = find_data_files(config.data, None)
    return ExampleFile.open(held_out or file, parse=read)


def examples_from_rows(
    rows: Rows, name: str, read: RowParser = parse_pairs, skipped_rows: list[RowError] | None = None
) -> ExampleList:
    """The examples of rows in memory, in any accepted shape. Raises `RowError`, or puts them into `bad`."""
    one_kind, found, lines = ExampleKindCheck(), list[Example](), list[int]()
    for i, row in enumerate(rows, 1):
        where = Where(name, i)
        try:
            found += one_kind.check(read(row, where), where)
        except RowError as error:
            if skipped_rows is None:
                raise
            skipped_rows.append(error)
        lines += [i] * (len(found) - len(lines))
    if not found:
        raise UserError("there are no pairs in it", where=Where(name))
    return ExampleList(found, name, lines)


def _open_rows(
    rows: Rows, valid_rows: Rows | None, read: RowParser, bad: list[RowError] | None
) -> tuple[ExampleSource, ExampleSource | None]:
    held = None if valid_rows is None else examples_from_rows(valid_rows, "valid_rows", read, bad)
    return examples_from_rows(rows, "rows", read, bad), held


def _open_files(
    config: TrainConfig,
    read: RowParser,
    say: Callable[[str], None],
    bad: list[RowError] | None,
    communicator: Communicator,
) -> tuple[ExampleSource, ExampleSource | None]:
    if not config.data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    data, valid = find_data_files(config.data, config.valid_data)
    trained = _open_file(data, read, say, bad, communicator)
    return trained, None if valid is None else _open_file(valid, read, say, bad, communicator)


def _open_file(
    name: str, read: RowParser, say: Callable[[str], None], bad: list[RowError] | None, communicator: Communicator
) -> ExampleFile:
    """A file of rows; of JSON lines rank 0 looks at all, and the others at those they train on."""
    shared = communicator.size > 1 and is_plain_jsonl(name)
    if shared and not communicator.is_main:
        return ExampleFile.from_index(name, communicator.all_gather({})[0], read)
    say(f"Reading {name}")
    on_problem = None if bad is None else bad.append
    file = ExampleFile.open(name, on_problem, lambda share: say(f"Reading {name}: {share:.0%}"), read)
    if shared:
        communicator.all_gather(file.index_arrays())
    return file


def _usable(pairs: EncodedExamples, communicator: Communicator) -> np.ndarray:
    """Indices of the examples that can be trained on, each rank encoding its share to see."""
    bad = [] if pairs.bad_rows is None else pairs.bad_rows
    found, usable = len(bad), pairs.usable_indices(communicator.local_items)
    parts = communicator.gather_shards({"usable": usable, "marks": pairs.flags})
    usable = functools.reduce(np.intersect1d, [part["usable"] for part in parts])
    pairs.flags = np.any([part["marks"] for part in parts], axis=0)
    if communicator.data_parallel:
        told = communicator.all_gather_json([error.to_mapping() for error in bad[found:]])
        refused = [RowError.from_mapping(error) for errors in told for error in errors]
        bad[found:] = sorted(refused, key=lambda error: error.where.line or 0 if error.where else 0)
    if not len(usable):
        hint = f"Raise --max-length from {pairs.encoder.max_length}, or use --overlong truncate."
        raise UserError("every row is too long, so none is left", where=Where(pairs.source.name), hint=hint)
    return usable
