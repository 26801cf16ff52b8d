"""What a person should know of the rows of a run, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_dpo.data.row_formats import Completion, Pair
from mlx_dpo.evaluation.example_sets import ExampleSet, ExampleSets
from mlx_dpo.objectives import WeightedLoss

LABEL_SAMPLE_SIZE = 1_000  # rows that are looked at for having labels of both kinds


def row_notes(examples: ExampleSet, loss: WeightedLoss, name: str) -> Iterator[str]:
    """What the loss of that name makes of what the rows say beside texts."""
    source = examples.examples.source
    first = source[0]
    if isinstance(first, Pair) and first.margin is not None:
        if all(one.uses_margins for one in loss.loss_functions if not one.unpaired):
            yield "the rows' `margin` is honoured: so much more reward the chosen answer is to get."
        else:
            yield f"the rows' `margin` is not looked at by the loss {name}."
    if isinstance(first, Completion) and not loss.likelihood_only:
        seen = [source[int(i)] for i in examples.indices[:LABEL_SAMPLE_SIZE]]
        labels = {one.desirable for one in seen if isinstance(one, Completion)}
        if len(labels) == 1:
            label = str(labels.pop()).lower()
            yield f"the first {len(seen):,} rows are all labelled {label}: there is nothing to tell them from."


def length_notes(example_sets: ExampleSets) -> list[str]:
    """What the length limit and the chat template did to the pairs encoded so far."""
    notes = []
    for pairs in dict.fromkeys(one.examples for one in example_sets.values()):
        name, limit = pairs.source.name, pairs.encoder.max_length
        if pairs.num_truncated:
            notes.append(f"{name}: {pairs.num_truncated} rows were cut at --max-length {limit}.")
        if pairs.num_dropped:
            notes.append(f"{name}: {pairs.num_dropped} rows were dropped, longer than --max-length {limit}.")
        if pairs.num_prefix_mismatches:
            notes.append(
                f"{name}: the template renders the prompt of {pairs.num_prefix_mismatches} rows otherwise "
                "once it is answered; "
                "training starts where the two part. `mlx-dpo data show` shows it."
            )
    return notes
