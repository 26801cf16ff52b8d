"""What training changed on held-out examples: each number before and after, with intervals and a paired test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlx_dpo.reporting import metric_intervals as statistics
from mlx_dpo.reporting.metric_intervals import Estimate, paired_p_value
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics


@dataclass(frozen=True)
class MetricChange:
    """One number before and after.

    Attributes:
        name: for programs; title and form: for people; meaning: what it is, in a sentence.
        p: of no change, on the same examples before and after; None where there is no such test.
    """

    name: str
    title: str
    number_format: str
    description: str
    before: Estimate | None
    after: Estimate | None
    p: float | None

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        told = asdict(self)
        return {key: told[key] for key in ("name", "title", "before", "after", "p")}


def compute_changes(run: RunStatistics) -> list[MetricChange]:
    """All that are known of a run; none without held-out examples measured twice."""
    if run.before is None or run.after is None:
        return []
    found = _of_pairs(run.before, run.after) if run.after.is_paired else _of_answers(run.before, run.after)
    return [*found, *_of_samples(run)]


def _of_pairs(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    yield _change(
        "logps/accuracies",
        "chosen likelier than rejected",
        "{:.1%}",
        "Share of pairs whose chosen answer has the higher log-probability.",
        statistics.estimate_share,
        before.logp_margins > 0,
        after.logp_margins > 0,
    )
    accuracies = [None if moment.is_reference else moment.margins > 0 for moment in (before, after)]
    yield _change(
        "rewards/accuracies",
        "reward accuracy",
        "{:.1%}",
        "Share of pairs whose chosen answer has the higher reward; a policy that is its reference has none to compare.",
        statistics.estimate_share,
        *accuracies,
    )
    yield _change(
        "rewards/margins",
        "reward margin",
        "{:.3f}",
        "Reward of the chosen answer less that of the rejected one.",
        statistics.estimate_mean,
        before.margins,
        after.margins,
    )
    yield from _kl(before, after)
    for side, name in enumerate(("chosen", "rejected")):
        yield _perplexity(before, after, name, np.arange(len(after.logps)), side)


def _of_answers(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    """Of single completions: rewards where they have some."""
    for side, name in (("chosen", "wanted"), ("rejected", "unwanted")):
        rewards = [moment.metrics[f"rewards/{side}"] for moment in (before, after)]
        there = np.flatnonzero(~np.isnan(rewards[1]))
        if len(there):
            title, meaning = f"reward of {name} answers", f"Mean reward of the {name} answers."
            values = [each[there] for each in rewards]
            yield _change(f"rewards/{side}", title, "{:.3f}", meaning, statistics.estimate_mean, *values)
    yield from _kl(before, after)
    for side, name in (("chosen", "wanted"), ("rejected", "unwanted")):
        there = np.flatnonzero(~np.isnan(after.metrics[f"logps/{side}"]))
        if len(there):
            yield _perplexity(before, after, name, there, 0)


def _kl(before: EvalRecord, after: EvalRecord) -> Iterator[MetricChange]:
    if before.kl is None or after.kl is None:
        return
    yield MetricChange(
        "kl/reference",
        "KL to the reference",
        "{:.4f}",
        "KL(policy || reference) of the whole next-token distributions, nats a token, mean over the tokens of "
        f"{len(after.kl)} held-out examples' answers. Without a reference: to the policy before the first step.",
        _kl_estimate(before),
        _kl_estimate(after),
        paired_p_value(before.kl.sum(axis=1), after.kl.sum(axis=1)),
    )


def _kl_estimate(moment: EvalRecord) -> Estimate | None:
    assert moment.kl is not None
    return statistics.estimate_ratio(moment.kl.sum(axis=1), moment.lengths[: len(moment.kl)].sum(axis=1).astype(float))


def _perplexity(before: EvalRecord, after: EvalRecord, name: str, which: np.ndarray, side: int) -> MetricChange:
    before_and_after = [
        _exp(statistics.estimate_ratio(-moment.logps[which, side], moment.lengths[which, side].astype(float)))
        for moment in (before, after)
    ]
    return MetricChange(
        f"perplexity/{name}",
        f"perplexity of {name} answers",
        "{:.3g}",
        f"exp of the nats a token of the {name} answers: lower is likelier.",
        before_and_after[0],
        before_and_after[1],
        paired_p_value(before.logps[which, side], after.logps[which, side]),
    )


def _exp(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    value, low, high = np.exp(np.minimum([estimate.value, estimate.low, estimate.high], 700)).tolist()
    return Estimate(value, low, high, estimate.count)


def _of_samples(run: RunStatistics) -> Iterator[MetricChange]:
    if len(run.samples) < 2:
        return
    lengths = [np.array(samples.tokens, np.float64) for samples in (run.samples[0], run.samples[-1])]
    count = len(lengths[0])
    meaning = f"Tokens of the answers drawn to {count} held-out prompts at temperature 1."
    yield _change("length", "length of sampled answers", "{:.1f}", meaning, statistics.estimate_mean, *lengths)


def _change(
    name: str,
    title: str,
    form: str,
    meaning: str,
    estimate: Callable[[np.ndarray], Estimate | None],
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> MetricChange:
    first, last = (None if values is None else estimate(values) for values in (before, after))
    p = None if before is None or after is None else paired_p_value(before, after)
    return MetricChange(name, title, form, meaning, first, last, p)
