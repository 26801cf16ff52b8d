"""`train` in the terminal: a bar and sparklines, and a line wherever something is worth keeping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mlx_dpo.reporting.diagnostics_listener import Finding
from mlx_dpo.reporting.time_estimate import TimeEstimator
from mlx_dpo.training.listener import Listener, Metrics, RunPlan

SPARKLINE_BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24  # of a sparkline
ZERO_REWARD = 1e-4  # rewards this small are rounding


class TerminalProgress(Listener):
    """Live in a terminal; plain lines, one a report, where the output is not one. Comes last, to time all others."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("")
        self.margins: list[float] = []
        self.accuracies: list[float] = []
        self.memory = self.pairs_per_second = self.held_out_reference = self.sampling = 0.0
        self.sent = ""
        self.time_estimator: TimeEstimator | None = None
        self.progress_bar = ProgressBar(console, self._lines)

    def on_preparing(self, text: str) -> None:
        self.progress_bar.stop()  # where training is started again
        self.status.update(text)
        self.status.start()

    def on_run_start(self, plan: RunPlan) -> None:
        self.status.stop()
        self.plan, self.time_estimator, self.progress_bar = (
            plan,
            TimeEstimator(plan),
            ProgressBar(self.console, self._lines),
        )
        self.held_out_reference = self.sampling = 0.0
        share = 100 * plan.trainable_parameters / plan.total_parameters
        held_out = plan.num_examples.get("held_out", 0)
        self._say(
            f"Training {_short(plan.trainable_parameters)} of {_short(plan.total_parameters)} parameters "
            f"({share:.2g}%) "
            f"on {plan.num_examples['train']:,} {plan.example_kind}, {plan.steps:,} steps; {held_out:,} held out."
        )
        if plan.ranks > 1:
            megabytes = plan.gradient_bytes / 1e6
            self._say(f"{plan.ranks} processes together; each sends {megabytes:.3g} MB of gradients a step.")
        if plan.first_step:
            self._say(f"Going on after step {plan.first_step:,}.")
        self.task = self.progress_bar.add_task("train", total=plan.steps, completed=plan.first_step, numbers="")
        self.progress_bar.start()

    def on_step(self, step: int, metrics: Metrics) -> None:
        assert self.time_estimator is not None
        self.time_estimator.record_step(step, metrics["reference_seconds"])
        self.memory = metrics["peak_memory_gb"]
        for values, name in ((self.margins, "rewards/margins"), (self.accuracies, "rewards/accuracies")):
            if name in metrics:
                values.append(metrics[name])
        self.progress_bar.update(self.task, completed=step, numbers=f"loss {metrics['loss']:.4f}", description="train")

    def on_metrics(self, metrics: Metrics) -> None:
        self.pairs_per_second = metrics["pairs_per_second"]
        self.sent = f"  {metrics['bytes_sent'] / 1e6:.3g} MB sent a step" if "bytes_sent" in metrics else ""
        if not self.console.is_terminal:
            self._say(
                f"step {metrics['step']}/{self.plan.steps}  {_numbers(metrics)}  "
                f"{metrics['pairs_per_second']:.3g} pairs/s  {self._memory()}{self.sent}  {self._time_left()}"
            )

    def on_evaluation_progress(self, done: int, pairs: int) -> None:
        self.progress_bar.update(self.task, description=f"held out {done}/{pairs}")

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        plain = {k.removeprefix("eval_"): v for k, v in metrics.items()}
        numbers = "the policy is its reference" if equals_reference(plain) else _numbers(plain)
        if "logps/accuracies" in plain:
            numbers += f"  chosen likelier in {plain['logps/accuracies']:.0%}"
        self._say(f"held out at step {metrics['step']}: {numbers}")

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        assert self.time_estimator is not None
        self.time_estimator.record_evaluation(
            reference_seconds - self.held_out_reference, sampling_seconds - self.sampling
        )
        self.held_out_reference, self.sampling = reference_seconds, sampling_seconds
        self.progress_bar.update(self.task, description="train")

    def on_note(self, text: str) -> None:
        self._say(f"Note: {text}")

    def on_run_end(self) -> None:
        self.status.stop()
        self.progress_bar.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _lines(self) -> Iterable[str]:
        """What stands under the bar."""
        if self.time_estimator is None:
            return
        if self.margins:
            yield f"margin    {sparkline(self.margins)} {self.margins[-1]:+.3f}"
        if self.accuracies:
            yield f"accuracy  {sparkline(self.accuracies, 0, 1)} {np.mean(self.accuracies[-10:]):.0%}"
        speed = f"  {self.pairs_per_second:.3g} pairs/s" if self.pairs_per_second else ""
        yield f"memory    {self._memory()}{speed}{self.sent}  {self._time_left()}"

    def _memory(self) -> str:
        return f"{self.memory:.2f} of {self.plan.memory_limit / 1e9:.1f} GB"

    def _time_left(self) -> str:
        left = None if self.time_estimator is None else self.time_estimator.remaining_seconds()
        return "" if left is None else f"{_duration(left)} left"


class ProgressBar(Progress):
    """A progress bar with lines under it; nothing where the console is not a terminal."""

    def __init__(self, console: Console, lines: Any) -> None:
        self.extra_lines = lines
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        super().__init__(
            *columns, TextColumn("{task.fields[numbers]}"), console=console, disable=not console.is_terminal
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for line in self.extra_lines():
            yield Text(line, no_wrap=True, overflow="ellipsis")


def print_finding(console: Console, finding: Finding) -> None:
    """A fault, where it first shows."""
    console.print(f"[bold yellow]{finding.title}[/] at step {finding.step}: ", end="", soft_wrap=True)
    console.print(f"{finding.sentence} Try: {finding.advice}", soft_wrap=True, markup=False)


def sparkline(
    values: Sequence[float], low: float | None = None, high: float | None = None, width: int = SPARKLINE_WIDTH
) -> str:
    """Values as a row of bars, from `low` to `high` (or their own least and most); of many, means of even shares."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return ""
    means = [float(part.mean()) for part in np.array_split(finite, min(width, len(finite)))]
    low, high = min(means) if low is None else low, max(means) if high is None else high
    places = [(mean - low) / (high - low) if high > low else 0.0 for mean in means]
    return "".join(
        SPARKLINE_BARS[min(len(SPARKLINE_BARS) - 1, max(0, int(place * len(SPARKLINE_BARS))))] for place in places
    )


def _numbers(metrics: Metrics) -> str:
    told = {
        "loss": lambda value: f"loss {value:.4f}",
        "rewards/accuracies": lambda value: f"accuracy {value:.0%}",
        "rewards/margins": lambda value: f"margin {value:+.3f}",
    }
    return "  ".join(tell(metrics[name]) for name, tell in told.items() if name in metrics)


def _short(count: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def equals_reference(metrics: Metrics) -> bool:
    """Whether the policy has not moved: then there are no rewards to compare."""
    rewards = [metrics.get(name) for name in ("rewards/margins", "rewards/chosen")]
    return all(reward is not None and abs(reward) < ZERO_REWARD for reward in rewards)
