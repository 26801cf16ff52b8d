"""Sentences for the user on the rows that a run trains on."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_dpo.data.encoding_warnings import ENCODING_WARNINGS
from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.evaluation.example_sets import ExampleSet, ExampleSets
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.utils.formatting import plural

LABEL_SAMPLE_SIZE = 1_000  # rows that are checked for labels of both kinds


def row_notes(example_set: ExampleSet, loss: WeightedLoss, loss_name: str) -> Iterator[str]:
    """Yield notes on what the loss makes of margins and labels.

    Args:
        example_set: examples to train on.
        loss: the loss.
        loss_name: its name for display.
    """
    source = example_set.examples.source
    if not len(source):
        return  # they are sampled while training
    first = source[0]
    if isinstance(first, Pair) and first.margin is not None:
        if all(function.uses_margins for function in loss.loss_functions if not function.unpaired):
            yield "the `margin` column is used as the target reward margin of each pair."
        else:
            yield f"the `margin` column is ignored by the loss {loss_name}."
    if isinstance(first, Completion) and not loss.likelihood_only:
        sample = [source[int(i)] for i in example_set.indices[:LABEL_SAMPLE_SIZE]]
        labels = {example.desirable for example in sample if isinstance(example, Completion)}
        if len(labels) == 1:
            label = str(labels.pop()).lower()
            yield f"the first {len(sample):,} rows are all labelled {label}: there is nothing to contrast them with."


def parsing_notes(example_sets: ExampleSets) -> Iterator[str]:
    """Yield a sentence for each kind of warning about the rows, as `mlx-dpo data check` prints them."""
    for source in dict.fromkeys(example_set.examples.source for example_set in example_sets.values()):
        for sentence in source.warnings.sentences():
            yield f"{source.name}: {sentence}"


def encoding_notes(example_sets: ExampleSets) -> list[str]:
    """Return notes on what the length limit and the chat template did to the examples encoded so far."""
    notes = []
    for examples in dict.fromkeys(example_set.examples for example_set in example_sets.values()):
        name, counts = examples.source.name, examples.counts()
        if dropped := counts.pop("dropped", 0):
            limit = examples.encoder.max_length
            notes.append(f"{name}: {plural(dropped, 'row')} dropped, longer than --max-length {limit}.")
        for key, count in counts.items():
            kind = ENCODING_WARNINGS[key]
            notes.append(f"{name}: {plural(count, 'row')}: {kind.message}. {kind.hint}")
    return notes
