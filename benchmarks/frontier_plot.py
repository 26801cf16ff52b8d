"""The figure of benchmarks/frontier.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frontier_curves import Point, run_key
from processes import print_status

COLOURS = {  # Okabe and Ito's, for all kinds of colour vision; the markers differ too, for print
    "dpo": ("#D55E00", "o"),
    "ppo-true-reward": ("#0072B2", "s"),
    "ppo": ("#56B4E9", "D"),
    "ipo": ("#CC79A7", "^"),
    "kto": ("#009E73", "v"),
    "sft": ("#B8A000", "P"),
    "unlikelihood": ("#7F7F7F", "X"),
    "best-of-n": ("#000000", "*"),
}
SMALLEST_KL = 0.003  # of the panel with all points, which is logarithmic


def plot(numbers: dict[str, Any], folder: Path) -> None:
    """Reward over KL, near the reference and of all points: small markers, a thin line a run, the optimum dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (near, wide) = pyplot.subplots(1, 2, figsize=(9.5, 4.3), width_ratios=(1.7, 1))
    wide.set_xscale("log")
    for axes in (near, wide):
        for method in COLOURS:
            draw_method(axes, numbers, method)
        optimum = [(point["kl"], point["reward"]) for point in numbers["optimum"]]
        axes.plot(*zip(*optimum, strict=True), "--", color="black", linewidth=1, label="optimum", zorder=3)
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("KL to the reference, nats an answer")
    near.set(xlim=(-0.01, 0.9), ylim=(numbers["reference_reward"] - 0.03, 1.01), ylabel="true reward")
    wide.set(xlim=(SMALLEST_KL, None), ylim=(0, 1.03))
    near.legend(fontsize=8, ncols=2, loc="lower right", framealpha=1)
    near.set_title("near the reference", fontsize=9)
    wide.set_title("all points, KL logarithmic", fontsize=9)
    figure.tight_layout()
    for suffix in (".svg", ".png"):
        file = folder / f"frontier{suffix}"
        figure.savefig(file, dpi=160)
        print_status(f"wrote {file}")


def draw_method(axes: Any, numbers: dict[str, Any], method: str) -> None:
    """The points of a method, those of a run joined."""
    colour, marker = COLOURS[method]
    runs: dict[tuple[Any, ...], list[Point]] = {}
    for point in numbers["points"]:
        if point["method"] == method:
            runs.setdefault(run_key(point), []).append(point)
    for row, run in enumerate(runs.values()):
        measured = [(point["kl"], point["reward"]) for point in run]
        if method != "best-of-n":
            curve = [(0, numbers["reference_reward"]), *measured] if axes.get_xscale() == "linear" else measured
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.5, alpha=0.35)
        label = method if row == 0 else None
        axes.plot(*zip(*measured, strict=True), marker, color=colour, markersize=3.5, markeredgewidth=0, label=label)
