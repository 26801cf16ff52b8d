"""How the time per step and the peak memory grow with prompt, completion, vocabulary, batch and layers.

    python benchmarks/growth.py [--only prompt,vocabulary] [--steps 2] [--grad-checkpoint] [--out FILE.png]

Each is varied alone around a small base, every point in a process of its own. Prints a table; writes a plot (PNG, by
matplotlib) and the numbers beside it (JSON). Lengths in the table are tokens, means over the pairs. A time is the
median over the steps of an epoch: of the first, reference included and the very first step left out, and of the second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from case import CaseShape
from processes import machine, make_case, measure, print_status, versions, write_json
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class GrowthSetting:
    """One point to measure: a case, and the pairs of a step."""

    shape: CaseShape
    batch_size: int


@dataclass(frozen=True)
class GrowthPoint:
    """Measurements of a setting.

    Attributes:
        prompt, completion: mean tokens.
        first, later: seconds per step, with the reference and without.
        peak_mb, weights_mb: of mlx's allocations, and of the model's weights, which are in it.
    """

    setting: GrowthSetting
    prompt: float
    completion: float
    first: float
    later: float
    peak_mb: float
    weights_mb: float


SHAPE = CaseShape(hidden=128, layers=4, vocab=8192, pairs=0, prompt_words=80, completion_words=40, spread=0.0)
BASE = GrowthSetting(SHAPE, batch_size=4)
VARIED: dict[str, tuple[int, ...]] = {
    "prompt": (40, 80, 160, 320),
    "completion": (20, 40, 80, 160),
    "vocabulary": (8192, 32768, 151936, 262144),
    "batch": (1, 4, 8, 16),
    "layers": (2, 4, 8, 16),
}
FIELDS = {"prompt": "prompt_words", "completion": "completion_words", "vocabulary": "vocab", "layers": "layers"}
AXES = {"prompt": "prompt tokens", "completion": "completion tokens", "batch": "pairs per step"}
NO_PLOT = "the plot needs matplotlib, which is not installed: pip install matplotlib"


def main() -> None:
    options = parse()
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit(NO_PLOT)  # before measuring for minutes
    before, measured = machine(), PointCache(options.steps, options.grad_checkpoint)
    series = {name: [measured.at(varied(name, value)) for value in VARIED[name]] for name in options.only}
    Console(highlight=False).print(table_of(series))
    plot(series, options.out)
    points = {name: [asdict(point) for point in points] for name, points in series.items()}
    about = {"machine": before, "versions": versions("mlx-dpo", "mlx", "mlx-lm")}
    write_json(options.out.with_suffix(".json"), {**about, "series": points})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {','.join(VARIED)}; default: all")
    parser.add_argument("--steps", type=int, default=2, help="in each of two epochs (default: 2)")
    parser.add_argument("--grad-checkpoint", action="store_true", help="train with gradient checkpointing")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/growth.png"), help="default: benchmarks/growth.png"
    )
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(VARIED)
    if unknown := set(options.only) - set(VARIED):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(VARIED)}")
    if options.steps < 2:
        parser.error("--steps: at least 2, for the first is left out")
    return options


def varied(name: str, value: int) -> GrowthSetting:
    """The base with one value changed."""
    if name == "batch":
        return replace(BASE, batch_size=value)
    return replace(BASE, shape=replace(BASE.shape, **{FIELDS[name]: value}))


def value_of(name: str, point: GrowthPoint) -> float:
    """The x value of a point."""
    measured = {"prompt": point.prompt, "completion": point.completion, "batch": point.setting.batch_size}
    return measured[name] if name in measured else getattr(point.setting.shape, FIELDS[name])


class PointCache:
    """Measures each setting once."""

    def __init__(self, steps: int, grad_checkpoint: bool) -> None:
        self.steps, self.flags = steps, ["--grad-checkpoint"] if grad_checkpoint else []
        self.points: dict[GrowthSetting, GrowthPoint] = {}

    def at(self, setting: GrowthSetting) -> GrowthPoint:
        """The point of a setting."""
        if setting not in self.points:
            print_status(f"{setting.shape.name}, {setting.batch_size} pairs per step")
            self.points[setting] = self._measure(setting)
        return self.points[setting]

    def _measure(self, setting: GrowthSetting) -> GrowthPoint:
        with tempfile.TemporaryDirectory() as name:
            folder, pairs = Path(name), setting.batch_size * self.steps
            make_case(folder, replace(setting.shape, pairs=pairs).flags())
            sizes = ("--batch-size", setting.batch_size, "--steps", self.steps, "--max-length", 8192)
            raw = measure(sys.executable, "drive_ours.py", folder, *sizes, *self.flags)
            prompt, completion = mean_tokens(folder)
            weights = (folder / "model" / "model.safetensors").stat().st_size / 1e6
        first, later = median(raw["first_epoch"][1:]), median(raw["later_epochs"])
        return GrowthPoint(setting, prompt, completion, first, later, raw["peak_mb"], round(weights, 1))


def mean_tokens(case: Path) -> tuple[float, float]:
    """Mean tokens of the case's prompts and completions, without the template's."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(case / "model" / "tokenizer.json"))
    rows = [json.loads(line) for line in (case / "data" / "train.jsonl").read_text().splitlines()]
    lengths = {key: [len(tokenizer.encode(row[key]).ids) for row in rows] for key in ("prompt", "chosen", "rejected")}
    return round(mean(lengths["prompt"]), 1), round(mean(lengths["chosen"] + lengths["rejected"]), 1)


def table_of(series: dict[str, list[GrowthPoint]]) -> Table:
    """A table with a section per varied value."""
    table = Table("varied", title="seconds per step, in the first epoch and later, and memory")
    for header in ("", "first", "later", "peak MB", "weights MB"):
        table.add_column(header, justify="right")
    for name, points in series.items():
        for i, point in enumerate(points):
            numbers = (f"{point.first:.2f}", f"{point.later:.2f}", f"{point.peak_mb:,.0f}", f"{point.weights_mb:,.0f}")
            table.add_row("" if i else AXES.get(name, name), f"{value_of(name, point):,.0f}", *numbers)
        table.add_section()
    return table


def plot(series: dict[str, list[GrowthPoint]], file: Path) -> None:
    """Plot time and memory, with a column per varied value and axes from zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(series), figsize=(3.2 * len(series), 5.6), squeeze=False, sharey="row")
    for (times, memory), (name, points) in zip(axes.T, series.items(), strict=True):
        x = [value_of(name, point) for point in points]
        draw(times, x, {"with reference": [p.first for p in points], "later epochs": [p.later for p in points]})
        draw(memory, x, {"peak": [p.peak_mb for p in points], "weights": [p.weights_mb for p in points]})
        memory.set_xlabel(AXES.get(name, name))
    axes[0][0].set_ylabel("seconds per step")
    axes[1][0].set_ylabel("MB")
    for row in axes:
        row[0].legend(frameon=False)
        row[0].set_ylim(bottom=0)  # of the whole row, once all is drawn
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    print_status(f"wrote {file}")


def draw(axis: Any, x: list[float], lines: dict[str, list[float]]) -> None:
    """Some lines over the same values."""
    for label, y in lines.items():
        axis.plot(x, y, marker="o", markersize=4, label=label)
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
