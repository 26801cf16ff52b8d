"""Sentences for the user on the rows that a run trains on."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.evaluation.example_sets import ExampleSet, ExampleSets
from mlx_dpo.objectives import WeightedLoss

LABEL_SAMPLE_SIZE = 1_000  # rows that are checked for labels of both kinds


def row_notes(example_set: ExampleSet, loss: WeightedLoss, loss_name: str) -> Iterator[str]:
    """Yield notes on what the loss makes of margins and labels.

    Args:
        example_set: examples to train on.
        loss: the loss.
        loss_name: its name, for people.
    """
    source = example_set.examples.source
    first = source[0]
    if isinstance(first, Pair) and first.margin is not None:
        if all(function.uses_margins for function in loss.loss_functions if not function.unpaired):
            yield "the rows' `margin` is used: the chosen answer is to get so much more reward."
        else:
            yield f"the rows' `margin` is ignored by the loss {loss_name}."
    if isinstance(first, Completion) and not loss.likelihood_only:
        sample = [source[int(i)] for i in example_set.indices[:LABEL_SAMPLE_SIZE]]
        labels = {example.desirable for example in sample if isinstance(example, Completion)}
        if len(labels) == 1:
            label = str(labels.pop()).lower()
            yield f"the first {len(sample):,} rows are all labelled {label}: there is nothing to contrast them with."


def length_notes(example_sets: ExampleSets) -> list[str]:
    """Return notes on what the length limit and the chat template did to the examples encoded so far."""
    notes = []
    for examples in dict.fromkeys(example_set.examples for example_set in example_sets.values()):
        name, limit = examples.source.name, examples.encoder.max_length
        if examples.num_truncated:
            notes.append(f"{name}: {examples.num_truncated} rows were cut at --max-length {limit}.")
        if examples.num_dropped:
            notes.append(f"{name}: {examples.num_dropped} rows were dropped, longer than --max-length {limit}.")
        if count := examples.num_prefix_mismatches:
            notes.append(
                f"{name}: the template renders the prompt of {count} rows differently once it is answered; the "
                "completion begins where the two renderings differ. `mlx-dpo data show` shows it."
            )
    return notes
