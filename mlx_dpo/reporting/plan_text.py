"""A plan, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from mlx_dpo.training.run_planner import RunEstimate


def print_plan(console: Console, plan: RunEstimate) -> None:
    """A table, whether it fits, and what to change where it does not."""
    table = Table(show_header=False)
    for name, value in _rows(plan):
        table.add_row(name, value)
    console.print(table)
    for line in _verdict(plan):
        console.print(line, soft_wrap=True, markup=False)


def _rows(plan: RunEstimate) -> Iterator[tuple[str, str]]:
    read = "" if plan.pairs_read >= plan.pairs else f" (lengths of {plan.pairs_read:,} looked at)"
    yield "pairs", f"{plan.pairs:,} to train on{read}, {plan.held_out:,} held out; {plan.steps:,} steps"
    yield "prompt tokens", "median {:,}, longest {:,}".format(*plan.prompt_tokens)
    yield "completion tokens", "median {:,}, longest {:,}".format(*plan.completion_tokens)
    yield "tokens a pair", "median {:,}, longest {:,}".format(*plan.tokens_per_pair)
    yield "through the model", plan.prompt_sharing
    yield (
        "micro-batches a step",
        f"{plan.micro_batches:.1f}, {plan.useful_share:.0%} of their tokens needed, the rest padding",
    )
    yield (
        "computed again",
        f"{plan.num_checkpointed} of {plan.num_checkpointable} feed-forwards and blocks, for the longest pairs",
    )
    yield "weights and optimizer", _size(plan.memory["held"])
    yield "peak memory", _size(plan.memory["peak"]) + ("" if plan.is_measured else " (an estimate)")
    if plan.seconds:
        yield "reference, if not cached", _duration(plan.seconds["reference"])
        yield "training", _duration(plan.seconds["training"])
        yield "evaluations", _duration(plan.seconds["evaluations"])
        yield "in all", _duration(sum(plan.seconds.values()))


def _verdict(plan: RunEstimate) -> Iterator[str]:
    limit = _size(plan.memory["limit"])
    if plan.fits:
        yield f"It fits: {_size(plan.memory['peak'])} of {limit}."
        if plan.num_checkpointed:
            yield "With more --memory-limit less is computed again, and long pairs go faster."
        return
    yield f"It does not fit: {_size(plan.memory['peak'])}, and the limit is {limit}. What helps:"
    if plan.max_length_that_fits:
        yield f"  --max-length {plan.max_length_that_fits}: longer pairs are cut at their prompt's start, or dropped."
    yield "  a model of fewer bits or fewer parameters; a lower --rank; other programs closed, and a higher limit."


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
