"""The text sections of a report: verdict, warnings, held-out metrics, examples, samples and config, all escaped."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from mlx_dpo.config_files import CONFIG_FILE
from mlx_dpo.reporting.diagnostics import DIAGNOSTICS, estimate_flipped_share
from mlx_dpo.reporting.diagnostics_listener import Finding, diagnose
from mlx_dpo.reporting.metric_changes import MetricChange, compute_changes
from mlx_dpo.reporting.rollout_section import rollout_section
from mlx_dpo.reporting.run_statistics import RunStatistics, SampledCompletions
from mlx_dpo.reporting.verdict import explain_falling_rewards, format_interval, format_p_value, verdict

NUM_UNFOLDED_SAMPLES = 6  # the rest is folded away
MAX_TOKENS, MAX_PROMPT_CHARACTERS = 400, 1_200  # of an example
MAX_OPACITY = 0.6  # of the background of the tokens with the largest log-ratios
MIN_COLORED_LOG_RATIO = 0.02  # nats
COMPLETION_NAMES = {None: "to imitate", True: "desirable", False: "undesirable"}  # by label


def headline(run: RunStatistics, *, show_name: bool) -> Iterator[str]:
    """What was trained on which data, the verdict and the warnings."""
    config, findings = run.config, diagnose(run)
    data, model = (
        str(config.get("data") or config.get("prompts") or "rows in memory"),
        str(config.get("model") or "a model in memory"),
    )
    if show_name:
        yield f"<h2>{escape(run.name)}</h2>"
    yield f"<p class=faint>{escape(str(config.get('loss')))} on {escape(data)}, starting from {escape(model)}</p>"
    if run.lineage:
        yield f"<p class=faint>Lineage: {escape(run.lineage)}</p>"
    style = "verdict wrong" if findings else "verdict"
    yield f"<p class='{style}'>{escape(verdict(run, compute_changes(run), findings))}</p>"
    if explanation := explain_falling_rewards(run, findings):
        yield f"<p><b>Both rewards fell.</b> {escape(explanation)}</p>"
    yield from _warnings(run, findings)


def _warnings(run: RunStatistics, findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        yield "<ul class=findings>"
        for finding in findings:
            yield f"<li><b>{escape(finding.title)}</b><br>{escape(finding.message)}<br>"
            yield f"<span class=faint>Try: {escape(finding.advice)}</span></li>"
        yield "</ul>"
    names = {finding.diagnostic for finding in findings}
    passed = [check.title for check in DIAGNOSTICS if check.applies_to(run) and check.name not in names]
    lines = [f"Checks passed: no {escape(', '.join(passed))}."] if passed else []
    if flipped := estimate_flipped_share(run):
        lines.append(f"Estimated share of flipped pairs: {format_interval(flipped, '{:.0%}')}.")
    if lines:
        yield f"<p><small>{' '.join(lines)}</small></p>"


def changes_table(runs: Sequence[RunStatistics]) -> Iterator[str]:
    """The held-out metrics before and after, with 95% intervals."""
    changes = [(run, change) for run in runs for change in compute_changes(run)]
    if not changes:
        return
    yield "<h2>Held-out metrics before and after</h2>"
    yield "<table class=changes>"
    headings = "".join(f"<th class=number>{name}</th>" for name in ("before", "after", "p-value"))
    yield f"<tr><th></th>{headings}</tr>"
    for name in dict.fromkeys(change.name for _, change in changes):
        description = next(change.description for _, change in changes if change.name == name)
        for run, change in changes:
            if change.name == name:
                yield _changes_row(change, f"{run.name}: " if len(runs) > 1 else "", description)
                description = ""
    yield "</table>"
    yield (
        "<p><small>In brackets: 95% intervals. Those of shares are Wilson's, the others are bootstrapped over examples "
        "(studentized, 2,000 resamples). The p-value is that of no change, by a paired sign-flip test on the same "
        "examples.</small></p>"
    )


def _changes_row(change: MetricChange, prefix: str, description: str) -> str:
    numbers = [format_interval(estimate, change.number_format) for estimate in (change.before, change.after)]
    cells = "".join(_number_cell(text) for text in (*numbers, format_p_value(change.p)))
    return f"<tr><td>{escape(prefix + change.title)}<br><small>{escape(description)}</small></td>{cells}</tr>"


def _number_cell(text: str) -> str:
    """A table cell, with the interval below the number."""
    number, bracket, interval = text.partition(" [")
    return (
        f"<td class=number>{escape(number)}" + (f"<br><small>[{escape(interval)}</small>" if bracket else "") + "</td>"
    )


def run_sections(run: RunStatistics, *, show_name: bool) -> Iterator[str]:
    """Single examples, samples and config of a run."""
    suffix = f" of {escape(run.name)}" if show_name else ""
    yield from _examples(run, suffix)
    yield from rollout_section(run.path, suffix)
    yield from _samples(run, suffix)
    yield f"<h2>Config{suffix}</h2>"
    yield from _config(run)


def _examples(run: RunStatistics, suffix: str) -> Iterator[str]:
    if not run.extreme_examples:
        return
    scale = _color_scale(run.extreme_examples)
    for is_right, title in ((False, "Most wrong"), (True, "Most right")):
        yield f"<h2>{title} held-out examples{suffix}</h2>"
        if not is_right and scale:
            yield (
                "<p class=key><span style='--color: rgb(var(--up))'>token got more likely</span>"
                "<span style='--color: rgb(var(--down))'>token got less likely</span>"
                f"<small>full color: its log-prob changed by {scale:.2g} nats; hover over a token for its value</small>"
                "</p>"
            )
        for example in run.extreme_examples:
            if example["right"] == is_right:
                yield from _example(example, scale)


def _example(example: dict[str, Any], scale: float) -> Iterator[str]:
    completions, label = example["sides"], example["label"]
    if len(completions) == 2:
        score, names = "margin", ["chosen", "rejected"]
    else:
        score = "log-prob per token" if label is None else "reward, signed by its label"
        names = [COMPLETION_NAMES[label]]
    yield f"<h3>{escape(example['where'])} <small class=faint>{score} {example['fit']:+.3f}</small></h3>"
    yield f"<div class=answer>{escape(_truncate(example['prompt']))}</div>"
    yield "<div class=two>"
    for name, completion in zip(names, completions, strict=True):
        yield f"<div><small class=faint>{name}</small>"
        yield f"<div class=answer>{_tokens(completion, scale)}</div></div>"
    yield "</div>"


def _tokens(completion: dict[str, Any], scale: float) -> str:
    """A completion's tokens, colored by their log-ratios."""
    texts = completion["pieces"]
    log_ratios: Sequence[float | None] = _log_ratios(completion) or [None] * len(texts)
    tokens = zip(texts[:MAX_TOKENS], log_ratios, strict=False)
    rest = len(texts) - MAX_TOKENS
    return "".join(_token(text, ratio, scale) for text, ratio in tokens) + (f" … {rest} more" if rest > 0 else "")


def _token(text: str, log_ratio: float | None, scale: float) -> str:
    if log_ratio is None:
        return escape(text)
    direction, opacity = "up" if log_ratio > 0 else "down", MAX_OPACITY * min(1.0, abs(log_ratio) / scale)
    color = f" class={direction} style='--a:{opacity:.2f}'" if abs(log_ratio) > MIN_COLORED_LOG_RATIO else ""
    return f"<i{color} title='{log_ratio:+.3f}'>{escape(text)}</i>"


def _log_ratios(completion: dict[str, Any]) -> list[float]:
    """Each token's log-prob after training minus that before; empty if the latter is unknown."""
    if completion["before"] is None:
        return []
    return [after - before for after, before in zip(completion["logps"], completion["before"], strict=True)]


def _color_scale(examples: Iterable[dict[str, Any]]) -> float:
    """The log-ratio that gets the full color; 0 if none is known."""
    sizes = [abs(ratio) for example in examples for side in example["sides"] for ratio in _log_ratios(side)]
    return max(0.05, float(np.quantile(sizes, 0.98))) if sizes else 0.0


def _samples(run: RunStatistics, suffix: str) -> Iterator[str]:
    if not run.samples:
        return
    first, last = run.samples[0], run.samples[-1]
    yield f"<h2>Samples{suffix}</h2>"
    yield "<p class=faint>Completions of held-out prompts, sampled at temperature 1.</p>"
    samples = [_sample(first, last, i) for i in range(len(first.prompts))]
    yield from samples[:NUM_UNFOLDED_SAMPLES]
    if len(samples) > NUM_UNFOLDED_SAMPLES:
        yield f"<details><summary>{len(samples) - NUM_UNFOLDED_SAMPLES} more</summary>"
        yield from samples[NUM_UNFOLDED_SAMPLES:]
        yield "</details>"


def _sample(first: SampledCompletions, last: SampledCompletions, i: int) -> str:
    samples = {"before": first} if last is first else {"before": first, "after": last}
    completions = "".join(
        f"<div><small class=faint>{name}</small><div class=answer>{escape(sample.completions[i])}</div></div>"
        for name, sample in samples.items()
    )
    return f"<h3>{escape(_truncate(first.prompts[i]))}</h3><div class=two>{completions}</div>"


def _config(run: RunStatistics) -> Iterator[str]:
    metadata = run.metadata
    again = shlex.join(["mlx-dpo", "train", "-c", str(run.path / CONFIG_FILE), "--adapter-path", f"{run.path}-again"])
    commands = [metadata["command"]] if metadata.get("command") else []
    yield f"<pre>{escape(chr(10).join([*commands, again]))}</pre>"
    versions = ", ".join(f"{name} {number}" for name, number in metadata.get("versions", {}).items())
    ranks = f"{metadata['ranks']} processes" if metadata.get("ranks", 1) > 1 else None
    yield f"<p class=faint>{escape('; '.join(filter(None, [versions, metadata.get('machine'), ranks])))}</p>"
    yield "<details><summary>All settings</summary><div class=scroll><table>"
    for name, value in run.config.items():
        yield f"<tr><td>{escape(str(name))}</td><td>{escape('' if value is None else str(value))}</td></tr>"
    yield "</table></div></details>"


def _truncate(prompt: str) -> str:
    return prompt if len(prompt) <= MAX_PROMPT_CHARACTERS else f"{prompt[:MAX_PROMPT_CHARACTERS]} …"
