"""What training changed on held-out examples: metrics before and after, with 95% intervals and a paired test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlx_dpo.reporting.metric_intervals import (
    Estimate,
    estimate_mean,
    estimate_ratio,
    estimate_share,
    paired_p_value,
)
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics

MAX_EXPONENT = 700.0  # of exp, below float64's overflow


@dataclass(frozen=True)
class MetricChange:
    """A metric before and after training.

    Attributes:
        name: its key in JSON.
        title: its name on the page and in the terminal.
        number_format: a format string for its values.
        description: one sentence that defines it.
        before: its estimate before the first step; None if it is undefined there.
        after: its estimate at the last evaluation.
        p: p-value of no change on the same examples; None if there is no such test.
    """

    name: str
    title: str
    number_format: str
    description: str
    before: Estimate | None
    after: Estimate | None
    p: float | None

    def to_mapping(self) -> dict[str, Any]:
        """The change as plain values, for JSON."""
        values = asdict(self)
        return {key: values[key] for key in ("name", "title", "before", "after", "p")}


def compute_changes(run: RunStatistics) -> list[MetricChange]:
    """All metrics of a run's held-out examples before and after. Empty unless they were evaluated twice."""
    before, after = run.before, run.after
    if before is None or after is None:
        return []
    changes = _changes_of_pairs(before, after) if after.is_paired else _changes_of_completions(before, after)
    return [*changes, *_change_of_sample_lengths(run)]


def _changes_of_pairs(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    if has_logps := before.logps is not None and after.logps is not None:
        yield _change(
            "logps/accuracies",
            "chosen likelier than rejected",
            "{:.1%}",
            "Share of pairs whose chosen completion has the higher log-probability.",
            estimate_share,
            before.logp_margins > 0,
            after.logp_margins > 0,
        )
    accuracies = [None if record.is_reference else record.margins > 0 for record in (before, after)]
    undefined = " Undefined while the policy equals its reference, where all rewards are zero." if has_logps else ""
    yield _change(
        "rewards/accuracies",
        "reward accuracy",
        "{:.1%}",
        f"Share of pairs whose chosen completion has the higher reward.{undefined}",
        estimate_share,
        *accuracies,
    )
    yield _change(
        "rewards/margins",
        "reward margin",
        "{:.3f}",
        "Reward of the chosen completion minus that of the rejected one.",
        estimate_mean,
        before.margins,
        after.margins,
    )
    yield from _change_of_kl(before, after)
    for column, name in enumerate(("chosen", "rejected") if has_logps else ()):
        yield _change_of_perplexity(before, after, name, name, np.arange(len(after.lengths)), column)


def _changes_of_completions(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    """Changes of single completions. Desirable ones have the metrics of chosen, undesirable ones of rejected."""
    kinds = {"chosen": "desirable", "rejected": "undesirable"}
    for metric, kind in kinds.items():
        rewards = [record.metrics[f"rewards/{metric}"] for record in (before, after)]
        labelled = np.flatnonzero(~np.isnan(rewards[1]))
        if len(labelled):
            title, description = f"reward of {kind} completions", f"Mean reward of the {kind} completions."
            values = [reward[labelled] for reward in rewards]
            yield _change(f"rewards/{metric}", title, "{:.3f}", description, estimate_mean, *values)
    yield from _change_of_kl(before, after)
    keys = {"chosen": "wanted", "rejected": "unwanted"}  # in the JSON of earlier versions, so they stay
    for metric, kind in kinds.items():
        labelled = np.flatnonzero(~np.isnan(after.metrics[f"logps/{metric}"]))
        if len(labelled):
            yield _change_of_perplexity(before, after, keys[metric], kind, labelled, 0)


def _change_of_kl(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    if before.kl is None or after.kl is None:
        return
    first, last = (
        estimate_ratio(kl.sum(axis=1), record.lengths[: len(kl)].sum(axis=1).astype(float))
        for record, kl in ((before, before.kl), (after, after.kl))
    )
    yield MetricChange(
        "kl/reference",
        "KL to the reference",
        "{:.4f}",
        "KL(policy || reference) of the next-token distributions in nats per token, averaged over the completion "
        f"tokens of {len(after.kl)} held-out examples. Without a reference: to the policy before the first step.",
        first,
        last,
        paired_p_value(before.kl.sum(axis=1), after.kl.sum(axis=1)),
    )


def _change_of_perplexity(
    before: EvalRecord, after: EvalRecord, key: str, kind: str, examples: np.ndarray, column: int
) -> MetricChange:
    logps = [record.require_logps()[examples, column] for record in (before, after)]
    first, last = (
        _exp(estimate_ratio(-values, record.lengths[examples, column].astype(float)))
        for values, record in zip(logps, (before, after), strict=True)
    )
    return MetricChange(
        f"perplexity/{key}",
        f"perplexity of {kind} completions",
        "{:.3g}",
        f"exp of the negative log-probability per token of the {kind} completions. Lower is more likely.",
        first,
        last,
        paired_p_value(*logps),
    )


def _exp(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    value, low, high = np.exp(np.minimum([estimate.value, estimate.low, estimate.high], MAX_EXPONENT)).tolist()
    return Estimate(value, low, high, estimate.count)


def _change_of_sample_lengths(run: RunStatistics) -> Iterator[MetricChange]:
    if len(run.samples) < 2:
        return
    lengths = [np.array(samples.lengths, np.float64) for samples in (run.samples[0], run.samples[-1])]
    description = f"Tokens of the completions sampled for {len(lengths[0])} held-out prompts at temperature 1."
    yield _change("length", "length of sampled completions", "{:.1f}", description, estimate_mean, *lengths)


def _change(
    name: str,
    title: str,
    number_format: str,
    description: str,
    estimate: Callable[[np.ndarray], Estimate | None],
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> MetricChange:
    first, last = (None if values is None else estimate(values) for values in (before, after))
    p = None if before is None or after is None else paired_p_value(before, after)
    return MetricChange(name, title, number_format, description, first, last, p)
