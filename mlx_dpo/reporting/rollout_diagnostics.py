"""Known failure modes of training on one's own answers; see `diagnostics`. All numbers are of sampled answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_dpo.reporting.diagnostic_registry import diagnostic
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.events import Metrics

MIN_REPORTS = 4  # below it, there is no beginning to compare the end with
PART = 4  # the beginning and the end are each this part of the reports
LENGTH_GROWTH = 1.25  # length of answers, at the end / at the beginning
LONGER_CHOSEN_SHARE = 0.75  # share of pairs in which the longer answer is the preferred one
VARIED_SHARE, COLLAPSED_SHARE = 0.5, 0.1  # share of distinct answers before and after a collapse
ENTROPY_SHARE, COLLAPSED_ENTROPY = 0.2, 0.05  # of the entropy that is left after a collapse, and nats per token
ALWAYS_TIES = 0.95  # share of prompts without a preferred answer


@diagnostic(
    "judge_gamed_by_length",
    "judge gamed by length",
    "Have the judge look at what should count instead, or let its score fall with length; --loss rdpo or "
    "sigmoid_norm, and --missing-eos-penalty where answers are cut off, work against it.",
    requires="verdicts",
)
def check_judge_gamed_by_length(run: RunStatistics) -> str | None:
    """Rewards rise together with length, and the longer answer wins: Singhal et al. 2023 (arXiv 2310.03716)."""
    ends = beginning_and_end(run)
    if ends is None:
        return None
    lengths, rewards = ([mean_over_reports(part, f"rollouts/{name}") for part in ends] for name in ("length", "reward"))
    longer = mean_over_reports(run.rollout_metrics, "rollouts/longer_chosen")
    if not (lengths[1] >= LENGTH_GROWTH * lengths[0] and rewards[1] > rewards[0] and longer >= LONGER_CHOSEN_SHARE):
        return None
    return (
        f"Answers got {lengths[1] / lengths[0]:.1f} times as long ({lengths[0]:.0f} to {lengths[1]:.0f} tokens) while "
        f"the judge's reward rose from {rewards[0]:.3g} to {rewards[1]:.3g}, and the longer answer is preferred "
        f"in {longer:.0%} of the pairs."
    )


@diagnostic(
    "collapsed_variety",
    "collapse of variety",
    "Stop earlier, lower --learning-rate, raise --beta, --kl-coef or --temperature, or mix in pairs (--replay).",
    requires="rollouts",
)
def check_collapse_of_variety(run: RunStatistics) -> str | None:
    """The policy writes one answer only: Kirk et al. 2023 (arXiv 2310.06452)."""
    ends = beginning_and_end(run)
    if ends is None:
        return None
    distinct, entropy = (
        [mean_over_reports(part, f"rollouts/{name}") for part in ends] for name in ("distinct", "entropy")
    )
    has_few_texts = distinct[0] >= VARIED_SHARE and distinct[1] <= COLLAPSED_SHARE
    has_no_entropy = entropy[1] <= min(ENTROPY_SHARE * entropy[0], COLLAPSED_ENTROPY)
    if not has_few_texts and not has_no_entropy:
        return None
    return (
        f"Answers to a prompt hardly differ any more: {distinct[1]:.0%} of them are distinct ({distinct[0]:.0%} at "
        f"first), and the entropy is {entropy[1]:.2g} nats per token ({entropy[0]:.2g} at first)."
    )


@diagnostic(
    "judge_always_ties",
    "judge that always ties",
    "Try the judge on a few answers (`mlx-dpo label`). Raise --num-completions or --temperature if answers are alike, "
    "and give graded scores instead of right or wrong.",
    requires="verdicts",
)
def check_judge_always_ties(run: RunStatistics) -> str | None:
    """The judge has no preference from the beginning, so there is nothing to learn."""
    ties = mean_over_reports(run.rollout_metrics, "rollouts/ties")
    at_first = mean_over_reports(_part(run.rollout_metrics, 0), "rollouts/ties")
    if not (ties >= ALWAYS_TIES and at_first >= ALWAYS_TIES):
        return None
    distinct = mean_over_reports(run.rollout_metrics, "rollouts/distinct")
    return f"The judge prefers no answer for {ties:.0%} of the prompts; {distinct:.0%} of their answers are distinct."


def beginning_and_end(run: RunStatistics) -> tuple[Sequence[Metrics], Sequence[Metrics]] | None:
    """The first and the last reports on what was sampled; None if there are too few."""
    reports = run.rollout_metrics
    return (_part(reports, 0), _part(reports, -1)) if len(reports) >= MIN_REPORTS else None


def _part(reports: Sequence[Metrics], index: int) -> Sequence[Metrics]:
    """The first reports, or with index -1 the last ones."""
    count = max(1, len(reports) // PART)
    return reports[-count:] if index else reports[:count]


def mean_over_reports(reports: Sequence[Metrics], name: str) -> float:
    """The mean of a metric over the reports that have it; NaN if none has."""
    values = [report[name] for report in reports if name in report]
    return float(np.mean(values)) if values else float("nan")
