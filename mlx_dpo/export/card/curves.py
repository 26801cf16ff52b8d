"""curves.png: how loss and rewards went. Needs matplotlib; without it there is no picture, and no word of one."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from mlx_dpo.training.listener import Metrics

CURVES_FILE = "curves.png"
_REWARDS = {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"}


def draw_curves(lines: Sequence[Metrics]) -> bytes | None:
    """A PNG of the lines of metrics.jsonl, or None where matplotlib is not installed or there is too little to draw."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    if max(len(trained), len(held_out)) < 2:
        return None
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rewards = figure.subplots(1, 2)
    _plot(loss, trained, "loss", "training")
    _plot(loss, held_out, "eval_loss", "held out", marker="o")
    loss.set(title="Loss", xlabel="step")
    source, prefix = (held_out, "eval_") if len(held_out) > 1 else (trained, "")
    for metric, name in _REWARDS.items():
        _plot(rewards, source, prefix + metric, name, marker="o" if prefix else "")
    rewards.set(title=f"Rewards, {'held-out' if prefix else 'training'} pairs", xlabel="step")
    for axes in (loss, rewards):
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    return picture.getvalue()


def _plot(axes: object, lines: Sequence[Metrics], metric: str, label: str, marker: str = "") -> None:
    points = [(line["step"], line[metric]) for line in lines if math.isfinite(line.get(metric, math.nan))]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker=marker)  # type: ignore[attr-defined]
