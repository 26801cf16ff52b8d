"""What a run came to, in a sentence."""

from __future__ import annotations

from mlx_dpo.reporting.changes import MetricChange, compute_changes
from mlx_dpo.reporting.diagnostics_listener import Finding
from mlx_dpo.reporting.metric_intervals import Estimate
from mlx_dpo.reporting.run_statistics import RunStatistics

SIGNIFICANCE_LEVEL = 0.05


def verdict(run: RunStatistics, found: list[MetricChange], findings: list[Finding]) -> str:
    """One sentence: did it learn what the pairs prefer, how sure is that, and does anything look wrong."""
    return f"{_learned(run, {change.name: change for change in found})}{_wrong(findings)}"


def _learned(run: RunStatistics, by_name: dict[str, MetricChange]) -> str:
    if not by_name:
        if run.step < run.steps:
            return f"Step {run.step:,} of {run.steps:,}: held-out {run.example_noun} were not measured again yet"
        return f"{run.step:,} steps done, and no held-out {run.example_noun} to tell what changed"
    so_far = f"After {run.step:,} of {run.steps:,} steps" if run.step < run.steps else f"After {run.steps:,} steps"
    if (margin := by_name.get("rewards/margins")) and margin.after is not None:
        return f"{so_far}, {_of_pairs(margin, by_name['logps/accuracies'])}"
    perplexity = next((by_name[name] for name in by_name if name.startswith("perplexity/")), None)
    if perplexity is None or perplexity.before is None or perplexity.after is None:
        return f"{so_far}, nothing was held out that tells what changed"
    told = f"perplexity {perplexity.before.value:.3g} to {perplexity.after.value:.3g}, {format_p_value(perplexity.p)}"
    if perplexity.p is None or perplexity.p >= SIGNIFICANCE_LEVEL:
        return f"{so_far}, the wanted answers among the held-out ones show no change that chance would not make: {told}"
    way = "likelier" if perplexity.after.value < perplexity.before.value else "less likely"
    return f"{so_far}, the wanted answers among the held-out ones are {way}: {told}"


def _of_pairs(margin: MetricChange, likelier: MetricChange) -> str:
    assert margin.after is not None
    if margin.p is None or margin.p >= SIGNIFICANCE_LEVEL:
        learned = "held-out pairs show no change that chance would not make"
    elif margin.after.value > 0:
        learned = "the policy prefers the chosen answers of held-out pairs more than it did"
    else:
        learned = "the policy prefers the chosen answers of held-out pairs less than it did"
    shares = ""
    if likelier.before is not None and likelier.after is not None:
        after, before = likelier.after.value, likelier.before.value
        shares = f"; the chosen answer is the likelier one in {after:.0%} (before: {before:.0%})"
    return f"{learned}: reward margin {format_interval(margin.after, '{:+.3g}')}, {format_p_value(margin.p)}{shares}"


def _wrong(findings: list[Finding]) -> str:
    if not findings:
        return ". Nothing looks wrong."
    titles = ", ".join(finding.title for finding in findings)
    return f". {len(findings)} thing{'s' * (len(findings) > 1)} to look at: {titles}."


def format_interval(estimate: Estimate | None, form: str) -> str:
    """A number with its 95% interval."""
    if estimate is None:
        return "-"
    value, low, high = (_unsigned_zero(form.format(each)) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _unsigned_zero(told: str) -> str:
    return told.removeprefix("-") if not told.strip("-0.%") else told


def format_p_value(p: float | None) -> str:
    """A p-value, for people."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def explain_falling_rewards(run: RunStatistics, findings: list[Finding]) -> str | None:
    """An answer to "Both rewards go down, is it broken?" where they do; None where they don't."""
    before, after = run.before, run.after
    if before is None or after is None or not after.is_paired or after.is_reference:
        return None
    names = ("rewards/chosen", "rewards/rejected")
    chosen, rejected = (float((after.metrics[name] - before.metrics[name]).mean()) for name in names)
    if chosen >= 0 or rejected >= 0:
        return None
    told = f"The rewards of the chosen answers fell by {-chosen:.3g}, those of the rejected ones by {-rejected:.3g}. "
    margin = next((change for change in compute_changes(run) if change.name == "rewards/margins"), None)
    if margin is None or margin.p is None or margin.p >= SIGNIFICANCE_LEVEL:
        return told + "Which of the two fell further is no more than chance makes."
    if chosen <= rejected:
        return told + "Yes: the chosen ones fell further, so it learns the opposite of what held-out pairs prefer."
    faults = {finding.fault for finding in findings}
    if "chance" in faults:
        return told + "Yes: which of the two fell further is a matter of chance."
    if "likelihood_displacement" in faults:
        return told + "In part: the order is right, but the chosen answers lost much of their likelihood; see below."
    return told + (
        "No: the loss only asks that the chosen one falls less, it does, and the chosen answers are about as likely as "
        "before."
    )
