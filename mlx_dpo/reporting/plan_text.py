"""Print the estimated time and memory of a run."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from mlx_dpo.training.config_planner import ConfigEstimate, LengthEstimate
from mlx_dpo.training.run_planner import RunEstimate
from mlx_dpo.utils.formatting import format_bytes, format_count, format_duration


def print_plan(console: Console, plan: RunEstimate) -> None:
    """Print a table, whether the run fits into memory, and what to change if it does not."""
    table = Table(show_header=False)
    for name, value in _rows(plan):
        table.add_row(name, value)
    console.print(table)
    for line in _memory_verdict(plan):
        console.print(line, soft_wrap=True, markup=False)


def _rows(plan: RunEstimate) -> Iterator[tuple[str, str]]:
    sampled = "" if plan.pairs_read >= plan.pairs else f" (estimated from {plan.pairs_read:,} of them)"
    yield "pairs", f"{plan.pairs:,} to train on{sampled}, {plan.held_out:,} held out; {plan.steps:,} steps"
    yield "prompt tokens", "median {:,}, longest {:,}".format(*plan.prompt_tokens)
    yield "completion tokens", "median {:,}, longest {:,}".format(*plan.completion_tokens)
    yield "tokens per pair", "median {:,}, longest {:,}".format(*plan.tokens_per_pair)
    yield "forward pass", plan.prompt_sharing
    yield "micro-batches per step", f"{plan.micro_batches:.1f}, {1 - plan.useful_share:.0%} of their tokens padding"
    checkpointed = f"{plan.num_checkpointed} of {plan.num_checkpointable} blocks and MLPs"
    yield "gradient checkpointing", f"{checkpointed}, for the longest pairs"
    yield "weights and optimizer", format_bytes(plan.memory["held"])
    if "sampling" in plan.memory:
        yield "sampling", f"{format_bytes(plan.memory['sampling'])} beside the weights; its time is not estimated"
    yield "peak memory", format_bytes(plan.memory["peak"]) + ("" if plan.is_measured else " (estimated)")
    if plan.seconds:
        if plan.seconds["reference"]:
            yield "reference, unless cached", format_duration(plan.seconds["reference"])
        yield "training", format_duration(plan.seconds["training"])
        yield "evaluations", format_duration(plan.seconds["evaluations"])
        yield "total", format_duration(sum(plan.seconds.values()))


def _memory_verdict(plan: RunEstimate) -> Iterator[str]:
    peak, limit = format_bytes(plan.memory["peak"]), format_bytes(plan.memory["limit"])
    if plan.fits:
        yield f"It fits: {peak} of {limit}."
        if plan.num_checkpointed:
            yield "A higher --memory-limit means less gradient checkpointing, which makes long pairs faster."
        return
    yield f"It does not fit: it takes {peak}, but the limit is {limit}. What helps:"
    if plan.max_length_that_fits:
        yield f"  --max-length {plan.max_length_that_fits}: longer pairs are truncated or dropped (see --overlong)"
    yield "  a model with fewer bits or parameters, a lower --rank, or closing other programs and a higher limit"


def print_config_plan(console: Console, plan: ConfigEstimate) -> None:
    """Print the memory at some lengths, the longest pair that fits, and how far off the estimate may be."""
    console.print(
        f"{plan.model_type}, {format_count(plan.parameters)} parameters: weights {format_bytes(plan.weights)}, "
        f"with optimizer and gradients {format_bytes(plan.held)}; the limit is {format_bytes(plan.limit)}.",
        soft_wrap=True,
        markup=False,
    )
    table = Table("tokens of a pair", "peak memory", "gradient checkpointing", "fits")
    for row in plan.lengths:
        checkpointed = f"{row.num_checkpointed} of {plan.num_checkpointable} blocks and MLPs"
        table.add_row(f"{row.tokens:,}", format_bytes(row.peak), checkpointed, _fits(plan, row))
    console.print(table)
    for line in _config_verdict(plan):
        console.print(line, soft_wrap=True, markup=False)


def _fits(plan: ConfigEstimate, row: LengthEstimate) -> str:
    if not row.fits:
        return "no"
    return "yes" if row.tokens <= plan.longest_pair else "perhaps"


def _config_verdict(plan: ConfigEstimate) -> Iterator[str]:
    if plan.longest_pair:
        yield f"Pairs of up to {plan.longest_pair:,} tokens of prompt and completion surely fit (--max-length)."
    else:
        yield "No pair is certain to fit. What helps: fewer bits or parameters, lower --rank, higher --memory-limit."
    yield (
        "The prompt of a pair is assumed to be twice as long as each completion. The peak is an estimate: within 10% "
        "for models whose weights outweigh it, and up to 40% too low for long pairs on tiny models. With the weights "
        "and --data, `mlx-dpo plan` measures it."
    )
