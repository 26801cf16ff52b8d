"""Sentences that summarize a run, and the format of its numbers."""

from __future__ import annotations

from mlx_dpo.reporting.diagnostics import SIGNIFICANCE_LEVEL
from mlx_dpo.reporting.diagnostics_listener import Finding
from mlx_dpo.reporting.metric_changes import MetricChange, compute_changes
from mlx_dpo.reporting.metric_intervals import Estimate
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.utils.formatting import plural

MIN_TESTABLE_PAIRS = 6  # fewer have no p-value below 0.05, even if all their margins grow (2 / 2^n)


def verdict(run: RunStatistics, changes: list[MetricChange], findings: list[Finding]) -> str:
    """One or two sentences: whether the policy learned the preferences, how sure that is, and the warnings.

    Args:
        run: the run.
        changes: what `compute_changes` returns for it.
        findings: what `diagnose` returns for it.
    """
    if findings:
        warnings = f"{plural(len(findings), 'warning')}: {', '.join(finding.title for finding in findings)}."
    else:
        warnings = "Nothing looks wrong."
    return f"{_learning_outcome(run, {change.name: change for change in changes})}. {warnings}"


def _learning_outcome(run: RunStatistics, changes: dict[str, MetricChange]) -> str:
    is_finished = run.step >= run.steps
    if not changes:
        if not is_finished:
            return f"Step {run.step:,} of {run.steps:,}: held-out {run.example_kind} were not evaluated again yet"
        if run.rollout_metrics:
            first, last = (run.rollout_metrics[i].get("rollouts/reward", float("nan")) for i in (0, -1))
            return f"{run.step:,} steps done; the judge's reward of sampled answers went from {first:.3g} to {last:.3g}"
        return f"{run.step:,} steps done, but there are no held-out {run.example_kind} to measure what changed"
    when = f"After {run.steps:,} steps" if is_finished else f"After {run.step:,} of {run.steps:,} steps"
    margin = changes.get("rewards/margins")
    if run.is_reward_model and margin:
        return f"{when}, {_reward_model_outcome(margin, changes['rewards/accuracies'])}"
    if margin and margin.after is not None and not run.is_likelihood_only:
        return f"{when}, {_pairs_outcome(margin, margin.after, changes['logps/accuracies'])}"
    return f"{when}, {_completions_outcome(changes)}"


def _completions_outcome(changes: dict[str, MetricChange]) -> str:
    kinds = {"perplexity/chosen": "chosen", "perplexity/wanted": "desirable", "perplexity/unwanted": "undesirable"}
    name = next((name for name in kinds if name in changes), "")
    perplexity, kind = changes.get(name), kinds.get(name)
    if perplexity is None or perplexity.before is None or perplexity.after is None:
        return "no held-out metric shows what changed"
    before, after = perplexity.before.value, perplexity.after.value
    numbers = f"perplexity {before:.3g} to {after:.3g}, {format_p_value(perplexity.p)}"
    if not _is_significant(perplexity):
        return f"the {kind} held-out completions show no significant change: {numbers}"
    return f"the {kind} held-out completions are {'more' if after < before else 'less'} likely: {numbers}"


def _pairs_outcome(margin: MetricChange, margin_after: Estimate, accuracy: MetricChange) -> str:
    if _is_significant(margin):
        direction = "more" if margin_after.value > 0 else "less"
        learned = f"the policy prefers the chosen completions of held-out pairs {direction} than before"
    elif margin_after.count < MIN_TESTABLE_PAIRS:
        learned = f"{plural(margin_after.count, 'held-out pair')} can't show a significant change"
    else:
        learned = "held-out pairs show no significant change"
    shares = ""
    if accuracy.before is not None and accuracy.after is not None:
        after, before = accuracy.after.value, accuracy.before.value
        shares = f"; the chosen completion is the more likely one in {after:.0%} (before: {before:.0%})"
    return f"{learned}: reward margin {format_interval(margin_after, '{:+.3g}')}, {format_p_value(margin.p)}{shares}"


def _reward_model_outcome(margin: MetricChange, accuracy: MetricChange) -> str:
    before = f" (before: {accuracy.before.value:.0%})" if accuracy.before is not None else ""
    ranked = f"the reward model ranks {format_interval(accuracy.after, '{:.0%}')} of held-out pairs right{before}"
    change = "" if _is_significant(margin) else ", which is no significant change"
    return f"{ranked}{change}: reward margin {format_interval(margin.after, '{:+.3g}')}, {format_p_value(margin.p)}"


def _is_significant(change: MetricChange) -> bool:
    return change.p is not None and change.p < SIGNIFICANCE_LEVEL


def format_interval(estimate: Estimate | None, number_format: str) -> str:
    """Format a number with its 95% interval.

    Args:
        estimate: the number; None if it is undefined.
        number_format: a format string for value and limits, such as "{:.2f}".

    Returns:
        Such as "0.52 [0.41, 0.63]"; "0.52" if the interval is empty; "-" for None.
    """
    if estimate is None:
        return "-"
    numbers = (number_format.format(number) for number in (estimate.value, estimate.low, estimate.high))
    value, low, high = (text.removeprefix("-") if not text.strip("-0.%") else text for text in numbers)  # no -0.0
    return value if estimate.low == estimate.high else f"{value} [{low}, {high}]"


def format_p_value(p: float | None) -> str:
    """A p-value, such as "p = 0.032" or "p < 0.001"; empty for None."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def explain_falling_rewards(run: RunStatistics, findings: list[Finding]) -> str | None:
    """Explain whether it is a problem that the rewards of chosen and rejected completions both fell.

    Args:
        run: the run.
        findings: what `diagnose` returns for it.

    Returns:
        A few sentences; None unless both rewards fell.
    """
    before, after = run.before, run.after
    if before is None or after is None or not after.is_paired or after.is_reference or run.is_reward_model:
        return None  # a reward model's rewards mean something only in comparison
    names = ("rewards/chosen", "rewards/rejected")
    chosen, rejected = (float((after.metrics[name] - before.metrics[name]).mean()) for name in names)
    if chosen >= 0 or rejected >= 0:
        return None
    facts = f"The rewards of the chosen completions fell by {-chosen:.3g}, those of the rejected by {-rejected:.3g}. "
    margin = next(change for change in compute_changes(run) if change.name == "rewards/margins")
    if not _is_significant(margin):
        return facts + "The difference is not significant."
    if chosen <= rejected:
        return (
            facts + "This is wrong: the chosen ones fell further, so the policy learns the opposite of the preferences."
        )
    diagnostics = {finding.diagnostic for finding in findings}
    if "chance" in diagnostics:
        return facts + "This is wrong: the accuracy on held-out pairs is at chance."
    if "likelihood_displacement" in diagnostics:
        return facts + "The order is right, but the chosen completions lost much of their likelihood."
    return facts + (
        "This is expected: the loss only requires the reward of the chosen completion to fall less, which it does, "
        "and the chosen completions are about as likely as before."
    )
