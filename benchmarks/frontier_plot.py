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
LARGEST_KL = 1.0  # of the figure; points beyond are counted in its corner


def plot(numbers: dict[str, Any], folder: Path) -> None:
    """Reward over KL: a small marker for each point, a thin line for each run, the optimum dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.6))
    optimum = numbers["optimum"]
    axes.plot(
        *zip(*((p["kl"], p["reward"]) for p in optimum), strict=True), "--", color="black", linewidth=1, label="optimum"
    )
    points = numbers["points"]
    for method, (colour, marker) in COLOURS.items():
        runs: dict[tuple[Any, ...], list[Point]] = {}
        for point in points:
            if point["method"] == method:
                runs.setdefault(run_key(point), []).append(point)
        for row, run in enumerate(runs.values()):
            curve = [(0, numbers["reference_reward"])] * (method != "best-of-n") + [(p["kl"], p["reward"]) for p in run]
            line = 0 if method == "best-of-n" else 0.6
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=line, alpha=0.45)
            axes.plot(
                *zip(*((p["kl"], p["reward"]) for p in run), strict=True),
                marker,
                color=colour,
                markersize=4,
                markeredgewidth=0,
                label=method if row == 0 else None,
            )
    beyond = sum(point["kl"] > LARGEST_KL for point in points)
    if beyond:
        axes.text(0.99, 0.02, f"{beyond} points are at a larger KL", transform=axes.transAxes, ha="right", fontsize=8)
    axes.set(
        xlim=(-0.01, LARGEST_KL), ylim=(0, 1.02), xlabel="KL to the reference, nats an answer", ylabel="true reward"
    )
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.05), framealpha=1)
    figure.tight_layout()
    for suffix in (".svg", ".png"):
        file = folder / f"frontier{suffix}"
        figure.savefig(file, dpi=160)
        print_status(f"wrote {file}")
