"""What a person should know of the rows of a run, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_dpo.data.row_formats import Completion, Pair
from mlx_dpo.evaluation.example_sets import PairSet, PairSets
from mlx_dpo.objectives import Loss

LABELS_SEEN = 1_000  # rows that are looked at for having labels of both kinds


def row_notes(examples: PairSet, loss: Loss, name: str) -> Iterator[str]:
    """What the loss of that name makes of what the rows say beside texts."""
    source = examples.pairs.source
    first = source[0]
    if isinstance(first, Pair) and first.margin is not None:
        if all(one.asks_margins for one in loss.objectives if not one.unpaired):
            yield "the rows' `margin` is honoured: so much more reward the chosen answer is to get."
        else:
            yield f"the rows' `margin` is not looked at by the loss {name}."
    if isinstance(first, Completion) and not loss.imitates:
        seen = [source[int(i)] for i in examples.indices[:LABELS_SEEN]]
        labels = {one.desirable for one in seen if isinstance(one, Completion)}
        if len(labels) == 1:
            label = str(labels.pop()).lower()
            yield f"the first {len(seen):,} rows are all labelled {label}: there is nothing to tell them from."


def length_notes(sets: PairSets) -> list[str]:
    """What the length limit and the chat template did to the pairs encoded so far."""
    notes = []
    for pairs in dict.fromkeys(one.pairs for one in sets.values()):
        name, limit = pairs.source.name, pairs.encoder.max_length
        if pairs.cut:
            notes.append(f"{name}: {pairs.cut} rows were cut at --max-length {limit}.")
        if pairs.dropped:
            notes.append(f"{name}: {pairs.dropped} rows were dropped, longer than --max-length {limit}.")
        if pairs.unclear:
            notes.append(
                f"{name}: the template renders the prompt of {pairs.unclear} rows otherwise once it is answered; "
                "training starts where the two part. `mlx-dpo data show` shows it."
            )
    return notes
