"""curves.png: loss and rewards by step. It needs matplotlib; without it, the card has no image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from mlx_dpo.training.events import Metrics
from mlx_dpo.utils.formatting import EVAL_PREFIX

CURVES_FILE = "curves.png"
_REWARDS = {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"}


def draw_curves(lines: Sequence[Metrics]) -> bytes | None:
    """Draw the lines of metrics.jsonl.

    Returns:
        A PNG image, or None if matplotlib is missing or there are fewer than two points.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "eval_loss" in line]
    if max(len(training), len(validation)) < 2:
        return None
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rewards = figure.subplots(1, 2)
    _plot(loss, training, "loss", "training")
    _plot(loss, validation, "eval_loss", "validation", marker="o")
    loss.set(title="Loss", xlabel="step")
    use_validation = len(validation) > 1
    for metric, label in _REWARDS.items():
        if use_validation:
            _plot(rewards, validation, EVAL_PREFIX + metric, label, marker="o")
        else:
            _plot(rewards, training, metric, label)
    rewards.set(title=f"Rewards, {'validation' if use_validation else 'training'} pairs", xlabel="step")
    for axes in (loss, rewards):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:  # rewards are missing without pairs
            axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def _plot(axes: object, lines: Sequence[Metrics], metric: str, label: str, marker: str = "") -> None:
    points = [(line["step"], line[metric]) for line in lines if math.isfinite(line.get(metric, math.nan))]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker=marker)  # type: ignore[attr-defined]
