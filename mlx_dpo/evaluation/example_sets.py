"""The examples that a run trains on and those it holds out, with their reference log-probs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.example_sources import ExampleList, ExampleSource
from mlx_dpo.data.examples import Example
from mlx_dpo.data.files.row_files import find_data_files, find_held_out_file, is_plain_jsonl
from mlx_dpo.data.row_parsing import RowParser, parse_examples, parse_labelled_examples, parse_pairs, parse_scored_pairs
from mlx_dpo.data.row_reading import ExampleKindCheck
from mlx_dpo.data.shuffled_epochs import split_held_out
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.reference.reference_policy import ReferenceLogps
from mlx_dpo.utils.progress import Progress

Rows = Iterable[Any]  # preference rows in memory, in any accepted format
TRAIN, HELD_OUT = "train", "held_out"
ExampleSets = dict[str, "ExampleSet"]  # by TRAIN and, if examples are held out, HELD_OUT
ExampleSourcePair = tuple[ExampleSource, ExampleSource | None]  # to train on, and held out


@dataclass(frozen=True)
class ExampleSet:
    """Examples to train on or to measure.

    Attributes:
        examples: the source that they are from, encoded.
        indices: [examples], which of the source's examples they are.
        reference: reference log-probs of the source's examples.
    """

    examples: EncodedExamples
    indices: np.ndarray
    reference: ReferenceLogps

    @classmethod
    def from_indices(cls, examples: EncodedExamples, indices: np.ndarray) -> ExampleSet:
        """Make a set of some examples of a source, with an empty reference table."""
        return cls(examples, indices, ReferenceLogps(len(examples), len(examples.source[0].completions)))

    @property
    def is_unpaired(self) -> bool:
        """Whether the examples are single completions."""
        return self.reference.completions_per_example == 1

    @property
    def example_kind(self) -> str:
        """What an example is called: "pairs" or "completions"."""
        return "completions" if self.is_unpaired else "pairs"


def example_reader(loss: WeightedLoss) -> RowParser:
    """Return how rows are parsed for a loss: to pairs, with scores if it needs them, or to single completions."""
    if any(function.needs_scores for function in loss.loss_functions):
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
    progress: Progress,
    skipped_rows: list[RowError] | None = None,
    communicator: Communicator = SINGLE_PROCESS,
) -> ExampleSets:
    """Open the examples to train on and those to hold out, from a config's files or from rows in memory.

    Args:
        config: the run's settings.
        loss: the loss that they are for.
        tokenizer: the policy's.
        rows: rows to train on, instead of the config's files.
        valid_rows: held-out rows.
        progress: receives what is being read, and how much of it is done.
        skipped_rows: receives the rows that can't be used; without it the first of them raises.
        communicator: ranks that share the work of encoding every example once.

    Raises:
        UserError: a file can't be read, or no example is left.
        RowError: a row can't be used.
    """
    encoder = ExampleEncoder.from_config(config, tokenizer)
    parse = with_renamed_columns(config.columns, example_reader(loss))
    if config.on_policy and not config.replay:
        held_out_rows = _open_held_out(config, valid_rows, parse, progress, skipped_rows, communicator)
        return _on_policy_sets(loss, encoder, held_out_rows, skipped_rows, communicator)
    if rows is None:
        source, held_out_source = _open_files(config, parse, progress, skipped_rows, communicator)
    else:
        source, held_out_source = _open_rows(rows, valid_rows, parse, skipped_rows)
    examples = EncodedExamples(source, encoder, skipped_rows)
    usable = _usable_indices(examples, communicator)
    if held_out_source is not None:
        held_out = EncodedExamples(held_out_source, encoder, skipped_rows)
        if type(held_out_source[0]) is not type(source[0]):
            message, hint = (
                "the held-out rows are of another kind than those to train on",
                "Use pairs for both, or single completions for both.",
            )
            raise UserError(message, where=Where(held_out_source.name), hint=hint)
        held_out_indices = _usable_indices(held_out, communicator)
        return {
            TRAIN: ExampleSet.from_indices(examples, usable),
            HELD_OUT: ExampleSet.from_indices(held_out, held_out_indices),
        }
    training, held_out_positions = split_held_out(len(usable), config.valid_pairs, config.seed)
    sets = {TRAIN: ExampleSet.from_indices(examples, usable[training])}
    if len(held_out_positions):
        sets[HELD_OUT] = ExampleSet.from_indices(examples, usable[held_out_positions])
    return sets


def open_evaluation_source(config: TrainConfig, rows: Rows | None, read: RowParser) -> ExampleSource:
    """Open the examples to measure: of a data folder, the held-out ones if it has some.

    Args:
        config: names the file or folder.
        rows: rows in memory instead.
        read: parses a row.

    Raises:
        UserError: there is nothing to read.
    """
    if rows is not None:
        return examples_from_rows(rows, "rows", read)
    if not config.data:
        raise _no_data()
    file, held_out = find_data_files(config.data, None)
    return ExampleFile.open(held_out or file, parse=read)


def examples_from_rows(
    rows: Rows, name: str, read: RowParser = parse_pairs, skipped_rows: list[RowError] | None = None
) -> ExampleList:
    """Parse rows in memory, in any accepted format.

    Args:
        rows: the rows.
        name: what messages call them.
        read: parses a row.
        skipped_rows: receives the rows that can't be parsed; without it the first of them raises.

    Raises:
        RowError: a row can't be parsed.
        UserError: there are none.
    """
    kind_check, examples, lines = ExampleKindCheck(), list[Example](), list[int]()
    for i, row in enumerate(rows, 1):
        where = Where(name, i)
        try:
            examples += kind_check.check(read(row, where), where)
        except RowError as error:
            if skipped_rows is None:
                raise
            skipped_rows.append(error)
        lines += [i] * (len(examples) - len(lines))
    if not examples:
        raise UserError("there are no pairs in it", where=Where(name))
    return ExampleList(examples, name, lines)


def _no_data() -> UserError:
    return UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")


def _open_rows(
    rows: Rows, valid_rows: Rows | None, parse: RowParser, skipped_rows: list[RowError] | None
) -> ExampleSourcePair:
    held_out = None if valid_rows is None else examples_from_rows(valid_rows, "valid_rows", parse, skipped_rows)
    return examples_from_rows(rows, "rows", parse, skipped_rows), held_out


def _open_files(
    config: TrainConfig,
    parse: RowParser,
    progress: Progress,
    skipped_rows: list[RowError] | None,
    communicator: Communicator,
) -> ExampleSourcePair:
    if not config.data:
        raise _no_data()
    data, valid_data = find_data_files(config.data, config.valid_data)
    how = (parse, progress, skipped_rows, communicator)
    return _open_file(data, *how), None if valid_data is None else _open_file(valid_data, *how)


def _open_file(
    name: str,
    parse: RowParser,
    progress: Progress,
    skipped_rows: list[RowError] | None,
    communicator: Communicator,
) -> ExampleFile:
    """Open a file; of JSON lines rank 0 reads all, and the other ranks those they train on."""
    is_shared = communicator.size > 1 and is_plain_jsonl(name)
    if is_shared and not communicator.is_main:
        return ExampleFile.from_index(name, communicator.all_gather({})[0], parse)
    progress.begin(f"Reading {name}")
    on_problem = None if skipped_rows is None else skipped_rows.append
    file = ExampleFile.open(name, on_problem, lambda share: progress.update(share, 1), parse)
    if is_shared:
        communicator.all_gather(file.index_arrays())
    return file


def _open_held_out(
    config: TrainConfig,
    valid_rows: Rows | None,
    parse: RowParser,
    progress: Progress,
    skipped_rows: list[RowError] | None,
    communicator: Communicator,
) -> ExampleSource | None:
    """The held-out examples of a run without examples to train on."""
    if valid_rows is not None:
        return examples_from_rows(valid_rows, "valid_rows", parse, skipped_rows)
    if config.valid_data is None:
        return None
    return _open_file(find_held_out_file(config.valid_data), parse, progress, skipped_rows, communicator)


def _on_policy_sets(
    loss: WeightedLoss,
    encoder: ExampleEncoder,
    held_out_source: ExampleSource | None,
    skipped_rows: list[RowError] | None,
    communicator: Communicator,
) -> ExampleSets:
    """No examples to train on yet, as they are sampled while training, and those held out."""
    sampled = EncodedExamples(ExampleList([], "sampled answers", []), encoder)
    width = 1 if loss.opponent in (Opponent.MIXTURE, Opponent.NONE) else 2
    sets = {TRAIN: ExampleSet(sampled, np.zeros(0, np.int64), ReferenceLogps(0, width))}
    if held_out_source is not None:
        held_out = EncodedExamples(held_out_source, encoder, skipped_rows)
        sets[HELD_OUT] = ExampleSet.from_indices(held_out, _usable_indices(held_out, communicator))
    return sets


def _usable_indices(examples: EncodedExamples, communicator: Communicator) -> np.ndarray:
    """Indices of the examples that can be trained on; each rank encodes its share to find out."""
    skipped_rows = [] if examples.bad_rows is None else examples.bad_rows
    num_skipped, usable = len(skipped_rows), examples.usable_indices(communicator.local_items)
    shards = communicator.gather_shards({"usable": usable, "flags": examples.flags})
    usable = functools.reduce(np.intersect1d, [shard["usable"] for shard in shards])
    examples.flags = np.any([shard["flags"] for shard in shards], axis=0)
    if communicator.data_parallel:
        gathered = communicator.all_gather_json([error.to_mapping() for error in skipped_rows[num_skipped:]])
        errors = [RowError.from_mapping(error) for shard in gathered for error in shard]
        skipped_rows[num_skipped:] = sorted(errors, key=lambda error: error.where.line or 0 if error.where else 0)
    if not len(usable):
        hint = f"Raise --max-length from {examples.encoder.max_length}, or use --overlong truncate."
        raise UserError("every row is too long, so none is left", where=Where(examples.source.name), hint=hint)
    return usable
