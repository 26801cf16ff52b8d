"""The progress of a run in the terminal: a progress bar with sparklines, and a line per event worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mlx_dpo.reporting.diagnostics_listener import Finding
from mlx_dpo.reporting.phase_progress import PhaseProgress
from mlx_dpo.reporting.run_statistics import ZERO_REWARD
from mlx_dpo.reporting.time_estimate import TimeEstimator
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.utils.formatting import format_bytes, format_count, format_duration, strip_eval_prefix

SPARKLINE_BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
METRIC_FORMATS = {
    "loss": "loss {:.4f}",
    "rewards/accuracies": "accuracy {:.0%}",
    "rewards/margins": "margin {:+.3f}",
    "rollouts/reward": "judge {:.3f}",
    "rollouts/ties": "ties {:.0%}",
    "objective/kl": "KL {:.2f}",
}


class TerminalProgress(Listener):
    """Shows a live display in a terminal, or prints a line per report elsewhere.

    It must be the last listener, so that the time the others take is part of its estimate.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.preparation = PhaseProgress(console)
        self.margins: list[float] = []
        self.accuracies: list[float] = []
        self.peak_memory_gb = self.pairs_per_second = self.reference_seconds = self.sampling_seconds = 0.0
        self.traffic = ""
        self.time_estimator: TimeEstimator | None = None
        self.progress_bar = ProgressBar(console, self._status_lines)

    def on_preparing(self, text: str) -> None:
        """Show what is being prepared."""
        self.progress_bar.stop()  # it runs if training is restarted
        self.preparation.begin(text)

    def on_preparation_progress(self, done: float, total: float) -> None:
        """Show how much of it is done."""
        self.preparation.update(done, total)

    def on_run_start(self, plan: RunPlan) -> None:
        """Print the size of the run and start the progress bar."""
        self.preparation.stop()
        self.plan, self.time_estimator = plan, TimeEstimator(plan)
        self.progress_bar = ProgressBar(self.console, self._status_lines)
        self.reference_seconds = self.sampling_seconds = 0.0
        trainable, total = plan.trainable_parameters, plan.total_parameters
        held_out = plan.num_examples.get("held_out", 0)
        self._print(
            f"Training {format_count(trainable)} of {format_count(total)} parameters ({100 * trainable / total:.2g}%) "
            f"on {plan.num_examples['train']:,} {plan.example_kind}, {plan.steps:,} steps; {held_out:,} held out."
        )
        if plan.ranks > 1:
            size = format_bytes(plan.gradient_bytes)
            self._print(f"{plan.ranks} processes; each sends {size} of gradients per step.")
        if plan.first_step:
            self._print(f"Resuming after step {plan.first_step:,}.")
        self.task = self.progress_bar.add_task("train", total=plan.steps, completed=plan.first_step, numbers="")
        self.progress_bar.start()

    def on_step(self, step: int, metrics: Metrics) -> None:
        """Advance the progress bar."""
        assert self.time_estimator is not None
        self.time_estimator.record_step(step, metrics["reference_seconds"])
        self.peak_memory_gb = metrics["peak_memory_gb"]
        for values, name in ((self.margins, "rewards/margins"), (self.accuracies, "rewards/accuracies")):
            if name in metrics:
                values.append(metrics[name])
        self.progress_bar.update(self.task, completed=step, numbers=f"loss {metrics['loss']:.4f}", description="train")

    def on_metrics(self, metrics: Metrics) -> None:
        """Print a line if the output is not a terminal."""
        self.pairs_per_second = metrics["pairs_per_second"]
        self.traffic = f"  {format_bytes(metrics['bytes_sent'])} sent per step" if "bytes_sent" in metrics else ""
        if not self.console.is_terminal:
            self._print(f"step {metrics['step']}/{self.plan.steps}  {_format_metrics(metrics)}{self._throughput()}")

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Show how many held-out examples are evaluated."""
        self.progress_bar.update(self.task, description=f"held out {done}/{total}")

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        """Print the held-out metrics."""
        metrics = strip_eval_prefix(metrics)
        text = "the policy equals its reference" if equals_reference(metrics) else _format_metrics(metrics)
        if "logps/accuracies" in metrics:
            text += f"  chosen likelier in {metrics['logps/accuracies']:.0%}"
        self._print(f"held out at step {metrics['step']}: {text}")

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        """Record the time of the evaluation."""
        assert self.time_estimator is not None
        self.time_estimator.record_evaluation(
            reference_seconds - self.reference_seconds, sampling_seconds - self.sampling_seconds
        )
        self.reference_seconds, self.sampling_seconds = reference_seconds, sampling_seconds
        self.progress_bar.update(self.task, description="train")

    def on_note(self, text: str) -> None:
        """Print the note."""
        self._print(f"Note: {text}")

    def on_run_end(self) -> None:
        """Stop the display."""
        self.preparation.stop()
        self.progress_bar.stop()

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _status_lines(self) -> Iterable[str]:
        """The lines below the progress bar."""
        if self.time_estimator is None:
            return
        if self.margins:
            yield f"margin    {sparkline(self.margins)} {self.margins[-1]:+.3f}"
        if self.accuracies:
            yield f"accuracy  {sparkline(self.accuracies, 0, 1)} {np.mean(self.accuracies[-10:]):.0%}"
        yield self._throughput().strip()

    def _throughput(self) -> str:
        """Speed, memory, network traffic and remaining time."""
        speed = f"  {self.pairs_per_second:.3g} pairs/s" if self.pairs_per_second else ""
        memory = f"  memory {self.peak_memory_gb:.2f} of {self.plan.memory_limit / 1e9:.1f} GB"
        seconds = None if self.time_estimator is None else self.time_estimator.remaining_seconds()
        return f"{speed}{memory}{self.traffic}" + ("" if seconds is None else f"  {format_duration(seconds)} left")


class ProgressBar(Progress):
    """A progress bar with text lines below it. It shows nothing if the console is not a terminal.

    Args:
        console: where to draw it.
        extra_lines: returns the lines.
    """

    def __init__(self, console: Console, extra_lines: Callable[[], Iterable[str]]) -> None:
        self.extra_lines = extra_lines
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        numbers = TextColumn("{task.fields[numbers]}")
        super().__init__(*columns, numbers, console=console, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the lines."""
        yield self.make_tasks_table(self.tasks)
        for line in self.extra_lines():
            yield Text(line, no_wrap=True, overflow="ellipsis")


def print_finding(console: Console, finding: Finding) -> None:
    """Print a warning when it first applies."""
    text = f" at step {finding.step}: {finding.message} Try: {finding.advice}"
    console.print(Text.assemble((finding.title, "bold yellow"), text), soft_wrap=True)


def sparkline(
    values: Sequence[float], low: float | None = None, high: float | None = None, width: int = SPARKLINE_WIDTH
) -> str:
    """A row of bars that shows values, or the means of equal shares of more than `width` values.

    Args:
        values: those that are not finite are left out.
        low: the value of the lowest bar; by default the smallest mean.
        high: the value of the highest bar; by default the largest mean.
        width: the most bars.
    """
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return ""
    means = np.array([part.mean() for part in np.array_split(finite, min(width, len(finite)))])
    low, high = means.min() if low is None else low, means.max() if high is None else high
    heights = (means - low) / (high - low) if high > low else np.zeros(len(means))
    indices = np.clip((heights * len(SPARKLINE_BARS)).astype(int), 0, len(SPARKLINE_BARS) - 1)
    return "".join(SPARKLINE_BARS[i] for i in indices)


def _format_metrics(metrics: Metrics) -> str:
    return "  ".join(text.format(metrics[name]) for name, text in METRIC_FORMATS.items() if name in metrics)


def equals_reference(metrics: Metrics) -> bool:
    """Whether the policy equals its reference up to rounding, so that all rewards are zero."""
    rewards = [metrics.get(name) for name in ("rewards/margins", "rewards/chosen")]
    return all(reward is not None and abs(reward) < ZERO_REWARD for reward in rewards)
