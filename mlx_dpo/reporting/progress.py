"""`train` in the terminal: a bar with the numbers that matter, and a line wherever something is worth keeping."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlx_dpo.training.listener import Listener, Metrics, RunPlan, TrainResult

# What is told of held-out rows before and after, and how.
HELD_OUT = {
    "logps/accuracies": ("chosen likelier than rejected", "{:.1%}"),
    "rewards/accuracies": ("reward accuracy", "{:.1%}"),
    "rewards/margins": ("reward margin", "{:.3f}"),
    "logps/chosen": ("log-prob of what is wanted", "{:.2f}"),
    "loss": ("loss", "{:.4f}"),
}


class TerminalProgress(Listener):
    """A live bar in a terminal; plain lines, one a report, where the output is not one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("")
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=120,
            disable=not self.console.is_terminal,
        )

    def preparing(self, text: str) -> None:
        self.status.update(text)
        self.status.start()

    def begin(self, plan: RunPlan) -> None:
        self.status.stop()
        self.plan = plan
        share = 100 * plan.trained_parameters / plan.all_parameters
        held_out = plan.pairs.get("held_out", 0)
        self._say(
            f"Training {_short(plan.trained_parameters)} of {_short(plan.all_parameters)} parameters ({share:.2g}%) "
            f"on {plan.pairs['train']:,} {plan.what}, {plan.steps:,} steps; {held_out:,} held out."
        )
        if plan.first_step:
            self._say(f"Going on after step {plan.first_step:,}.")
        self.task = self.bar.add_task("train", total=plan.steps, completed=plan.first_step, numbers="")
        self.bar.start()
        self.pairs_per_second = 0.0
        self.began, self.first_step = time.monotonic(), plan.first_step

    def step(self, step: int, metrics: Metrics) -> None:
        speed = f"{self.pairs_per_second:.3g} pairs/s" if self.pairs_per_second else ""
        numbers = f"{_numbers(metrics)}  {speed}  {metrics['peak_memory_gb']:.2f} GB"
        self.bar.update(self.task, completed=step, numbers=numbers, description="train")

    def report(self, metrics: Metrics) -> None:
        self.pairs_per_second = metrics["pairs_per_second"]
        if not self.console.is_terminal:
            self._say(
                f"step {metrics['step']}/{self.plan.steps}  {_numbers(metrics)}  "
                f"{metrics['pairs_per_second']:.3g} pairs/s  {metrics['peak_memory_gb']:.2f} GB  "
                f"{self._time_left(int(metrics['step']))} left"
            )

    def evaluating(self, done: int, pairs: int) -> None:
        self.bar.update(self.task, description=f"held out {done}/{pairs}")

    def evaluation(self, metrics: Metrics) -> None:
        plain = {k.removeprefix("eval_"): v for k, v in metrics.items()}
        numbers = "the policy is its reference" if _is_reference(plain) else _numbers(plain)
        if "logps/accuracies" in plain:
            numbers += f"  chosen likelier in {plain['logps/accuracies']:.0%}"
        self._say(f"held out at step {metrics['step']}: {numbers}")
        self.bar.update(self.task, description="train")

    def note(self, text: str) -> None:
        self._say(f"Note: {text}")

    def end(self) -> None:
        self.status.stop()
        self.bar.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _time_left(self, step: int) -> str:
        a_step = (time.monotonic() - self.began) / max(1, step - self.first_step)
        minutes, seconds = divmod(round(a_step * (self.plan.steps - step)), 60)
        return f"{minutes}:{seconds:02d}"


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


def before_and_after(before: Metrics, after: Metrics) -> Table:
    """Held-out numbers before and after, for people."""
    table = Table(title="Held out", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    unmoved = _is_reference(before)
    for name, (title, form) in HELD_OUT.items():
        if name in after and not (name == "logps/chosen" and "logps/accuracies" in after):
            untold = name == "rewards/accuracies" and unmoved
            table.add_row(title, "-" if untold else form.format(before[name]), form.format(after[name]))
    return table


def _is_reference(metrics: Metrics) -> bool:
    """Whether the policy has not moved: then there are no rewards to compare."""
    return metrics.get("rewards/margins") == 0 == metrics.get("rewards/chosen")


def show_result(console: Console, result: TrainResult, model: str) -> None:
    """The end of a run: the table, and what to type next."""
    if result.after:
        console.print(before_and_after(result.before, result.after))
    else:
        console.print("Nothing was held out, so what changed was not measured: give some with --valid-data.")
    console.print(f"Done in {result.seconds:.0f} s. The adapter is in {result.run}. Next:", soft_wrap=True)
    for line in next_commands(result.run, model):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def next_commands(run: Path, model: str) -> list[str]:
    """Commands that use a run's adapter."""
    return [
        f"mlx-dpo compare --adapter-path {run} --prompt 'Your question'",
        f"mlx-dpo fuse --adapter-path {run} --save-path {run}-fused",
        f"mlx_lm.generate --model {model} --adapter-path {run} --prompt 'Your question'",
    ]
