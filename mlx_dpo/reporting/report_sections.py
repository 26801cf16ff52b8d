"""The written parts of the page: verdict, diagnosis, numbers, pairs, samples, config. All text is escaped here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from mlx_dpo.reporting.changes import MetricChange, compute_changes
from mlx_dpo.reporting.diagnostics import DIAGNOSTICS, estimate_flipped_share
from mlx_dpo.reporting.diagnostics_listener import Finding, diagnose
from mlx_dpo.reporting.run_statistics import RunStatistics, SampledCompletions
from mlx_dpo.reporting.word_changes import explain_falling_rewards, format_interval, format_p_value, verdict

SAMPLES_SHOWN = 6  # before the rest is folded away
TOKENS_SHOWN, PROMPT_SHOWN = 400, 1_200  # tokens of an answer, characters of a prompt
STRONGEST, FAINTEST = 0.6, 0.02  # opacity of the largest log-ratio, and log-ratios that get no colour, nats


def headline(run: RunStatistics, *, show_name: bool) -> Iterator[str]:
    """What was trained on what, the verdict and the diagnosis."""
    config, found, findings = run.config, compute_changes(run), diagnose(run)
    data, model = str(config.get("data") or "rows in memory"), str(config.get("model") or "a model in memory")
    if show_name:
        yield f"<h2>{escape(run.name)}</h2>"
    yield f"<p class=faint>{escape(str(config.get('loss')))} on {escape(data)}, starting from {escape(model)}</p>"
    wrong = " wrong" if findings else ""
    yield f"<p class='verdict{wrong}'>{escape(verdict(run, found, findings))}</p>"
    if answer := explain_falling_rewards(run, findings):
        yield f"<p><b>Both rewards go down, is it broken?</b> {escape(answer)}</p>"
    yield from _diagnosis(run, findings)


def _diagnosis(run: RunStatistics, findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        yield "<ul class=findings>"
        for one in findings:
            yield f"<li><b>{escape(one.title)}</b><br>{escape(one.sentence)}<br>"
            yield f"<span class=faint>Try: {escape(one.advice)}</span></li>"
        yield "</ul>"
    names = {finding.fault for finding in findings}
    passed = ", ".join(fault.title for fault in DIAGNOSTICS if fault.applies_to(run) and fault.name not in names)
    flipped = estimate_flipped_share(run)
    noise = "" if flipped is None else f" Estimated share of flipped pairs: {format_interval(flipped, '{:.0%}')}."
    if passed or noise:
        yield f"<p><small>Looked for and not seen: {escape(passed)}.{noise}</small></p>"


def changes_table(runs: Sequence[RunStatistics]) -> Iterator[str]:
    """Before and after on held-out examples, with 95% intervals."""
    every = [(run, compute_changes(run)) for run in runs]
    if not any(found for _, found in every):
        return
    yield "<h2>Held out, before and after</h2>"
    yield "<table class=changes>"
    numbers = "".join(f"<th class=number>{name}</th>" for name in ("before", "after", "p-value"))
    yield f"<tr><th></th>{numbers}</tr>"
    for name in dict.fromkeys(change.name for _, found in every for change in found):
        alike = [(run, change) for run, found in every for change in found if change.name == name]
        for i, (run, change) in enumerate(alike):
            yield _row(change, f"{run.name}: " if len(runs) > 1 else "", change.description if i == 0 else "")
    yield "</table>"
    yield (
        "<p><small>In brackets: 95% intervals, of shares Wilson's, else by bootstrap over examples (studentized, 2,000 "
        "resamples). The p-value is that of no change: a paired sign-flip test on the same examples.</small></p>"
    )


def _row(change: MetricChange, who: str, meaning: str) -> str:
    told = [
        *(format_interval(each, change.number_format) for each in (change.before, change.after)),
        format_p_value(change.p),
    ]
    name = f"{escape(who + change.title)}<br><small>{escape(meaning)}</small>"
    return f"<tr><td>{name}</td>{''.join(map(_number, told))}</tr>"


def _number(told: str) -> str:
    """A cell; a number's interval stands under it."""
    number, bracket, rest = told.partition(" [")
    return f"<td class=number>{escape(number)}" + (f"<br><small>[{escape(rest)}</small></td>" if bracket else "</td>")


def run_sections(run: RunStatistics, *, show_name: bool) -> Iterator[str]:
    """Pairs, samples and config of a run."""
    of = f" of {escape(run.name)}" if show_name else ""
    yield from _examples(run, of)
    yield from _samples(run, of)
    yield f"<h2>Config{of}</h2>"
    yield from _config(run)


def _examples(run: RunStatistics, of: str) -> Iterator[str]:
    if not run.extreme_examples:
        return
    scale = _scale(run.extreme_examples)
    for right, title in ((False, "most wrong"), (True, "most right")):
        yield f"<h2>What it gets {title}{of}</h2>"
        if not right and scale:
            yield (
                "<p class=key><span style='--color: rgb(var(--up))'>a token got likelier</span>"
                "<span style='--color: rgb(var(--down))'>less likely</span>"
                f"<small>full colour: its log-prob moved {scale:.2g} nats; point at a token for its own</small></p>"
            )
        for one in run.extreme_examples:
            if one["right"] == right:
                yield from _example(one, scale)


def _example(one: dict[str, Any], scale: float) -> Iterator[str]:
    what = {2: "margin", 1: "reward, by its label" if one["label"] is not None else "nats a token"}[len(one["sides"])]
    yield f"<h3>{escape(one['where'])} <small class=faint>{what} {one['fit']:+.3f}</small></h3>"
    yield f"<div class=answer>{escape(_cut(one['prompt'], PROMPT_SHOWN))}</div>"
    yield "<div class=two>"
    names = ("chosen", "rejected") if len(one["sides"]) == 2 else (_of_label(one["label"]),)
    for name, side in zip(names, one["sides"], strict=True):
        yield f"<div><small class=faint>{name}</small>"
        yield f"<div class=answer>{_tokens(side, scale)}</div></div>"
    yield "</div>"


def _of_label(label: bool | None) -> str:
    return {None: "to imitate", True: "desirable", False: "undesirable"}[label]


def _tokens(side: dict[str, Any], scale: float) -> str:
    """An answer's tokens, each with its log-ratio as colour."""
    ratios = [None] * len(side["pieces"])
    if side["before"] is not None:
        ratios = [after - before for after, before in zip(side["logps"], side["before"], strict=True)]
    told = zip(side["pieces"][:TOKENS_SHOWN], ratios, strict=False)
    rest = len(side["pieces"]) - TOKENS_SHOWN
    return "".join(_token(piece, ratio, scale) for piece, ratio in told) + (f" … {rest} more" if rest > 0 else "")


def _token(piece: str, ratio: float | None, scale: float) -> str:
    if ratio is None:
        return escape(piece)
    way, strength = "up" if ratio > 0 else "down", STRONGEST * min(1.0, abs(ratio) / scale)
    color = f" class={way} style='--a:{strength:.2f}'" if abs(ratio) > FAINTEST else ""
    return f"<i{color} title='{ratio:+.3f}'>{escape(piece)}</i>"


def _scale(pairs: Iterable[dict[str, Any]]) -> float:
    """The log-ratio that gets the full colour; 0 where none is known."""
    sides = [side for one in pairs for side in one["sides"] if side["before"] is not None]
    ratios = [abs(a - b) for side in sides for a, b in zip(side["logps"], side["before"], strict=True)]
    return max(0.05, float(np.quantile(ratios, 0.98))) if ratios else 0.0


def _samples(run: RunStatistics, of: str) -> Iterator[str]:
    if not run.samples:
        return
    first, last = run.samples[0], run.samples[-1]
    yield f"<h2>Samples{of}</h2>"
    yield "<p class=faint>Drawn at temperature 1, to held-out prompts.</p>"
    shown = [_sample(first, last, i) for i in range(len(first.prompts))]
    yield from shown[:SAMPLES_SHOWN]
    if len(shown) > SAMPLES_SHOWN:
        yield f"<details><summary>{len(shown) - SAMPLES_SHOWN} more</summary>"
        yield from shown[SAMPLES_SHOWN:]
        yield "</details>"


def _sample(first: SampledCompletions, last: SampledCompletions, i: int) -> str:
    both = [("before", first)] if last is first else [("before", first), ("after", last)]
    answers = "".join(
        f"<div><small class=faint>{name}</small><div class=answer>{escape(samples.answers[i])}</div></div>"
        for name, samples in both
    )
    return f"<h3>{escape(_cut(first.prompts[i], PROMPT_SHOWN))}</h3><div class=two>{answers}</div>"


def _config(run: RunStatistics) -> Iterator[str]:
    about = run.metadata
    again = shlex.join(["mlx-dpo", "train", "-c", str(run.path / "config.yaml"), "--adapter-path", f"{run.path}-again"])
    commands = [about["command"]] if about.get("command") else []
    yield f"<pre>{escape(chr(10).join([*commands, again]))}</pre>"
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    together = f"{about['ranks']} processes together" if about.get("ranks", 1) > 1 else None
    yield f"<p class=faint>{escape('; '.join(filter(None, [versions, about.get('machine'), together])))}</p>"
    yield "<details><summary>Every knob</summary><div class=scroll><table>"
    for name, value in run.config.items():
        yield f"<tr><td>{escape(str(name))}</td><td>{escape('' if value is None else str(value))}</td></tr>"
    yield "</table></div></details>"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
