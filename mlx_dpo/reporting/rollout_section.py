"""The section of a report with sampled answers over the time of an on-policy run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.reporting.rollout_log import read_rollouts

NUM_STEPS, PROMPTS_PER_STEP = 4, 2
MAX_CHARACTERS = 1_200  # of a prompt or an answer


def rollout_section(run: Path, suffix: str) -> Iterator[str]:
    """Yield the prompts of some steps with their answers and verdicts; nothing for an offline run.

    Args:
        run: the run's folder.
        suffix: what follows the heading, escaped.
    """
    rollouts = read_rollouts(run)
    if not rollouts:
        return
    yield f"<h2>Answers over time{suffix}</h2>"
    yield "<p class=faint>Sampled from the policy while it trained, with the judge's scores.</p>"
    for step in _selected_steps(rollouts):
        yield f"<h3>Step {step}</h3>"
        of_step = [rollout for rollout in rollouts if rollout["step"] == step]
        for rollout in of_step[:PROMPTS_PER_STEP]:
            yield f"<div class=answer>{escape(_text(rollout['prompt']))}</div>"
            yield "<div class=two>"
            yield from (_answer(rollout, i) for i in _shown(rollout))
            yield "</div>"


def _selected_steps(rollouts: Sequence[dict[str, Any]]) -> list[int]:
    steps = np.unique([rollout["step"] for rollout in rollouts])
    places = np.unique(np.linspace(0, len(steps) - 1, NUM_STEPS).round().astype(int))
    return [int(step) for step in steps[places]]


def _shown(rollout: dict[str, Any]) -> list[int]:
    """The pair, or the first answers, at most two."""
    pair = rollout["chosen"], rollout["rejected"]
    return list(range(len(rollout["completions"])))[:2] if None in pair else list(pair)


def _answer(rollout: dict[str, Any], i: int) -> str:
    labels = {rollout["chosen"]: "chosen", rollout["rejected"]: "rejected"}
    score = rollout["scores"][i] if rollout["scores"] else None
    label = labels.get(i, "answer") + ("" if score is None else f", {score:.3g}")
    text = escape(_text(rollout["completions"][i]))
    return f"<div><small class=faint>{label}</small><div class=answer>{text}</div></div>"


def _text(value: Any) -> str:
    text = (
        value if isinstance(value, str) else "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in value)
    )
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"
