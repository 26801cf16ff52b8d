"""mlx-dpo train"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mlx_dpo.cli.knobs import with_knobs
from mlx_dpo.cli.output import notes, print_json, results
from mlx_dpo.config import TrainConfig, config_from
from mlx_dpo.reporting.records import SAMPLED
from mlx_dpo.training.listener import Listener, Listeners, RunPlan


@with_knobs()
def train(
    flags: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="YAML file of knobs; flags win over it.", rich_help_panel="Run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --adapter-path.", rich_help_panel="Run")
    ] = False,
    live_report: Annotated[
        bool,
        typer.Option("--live-report", help="Rewrite report.html at every report.", rich_help_panel="Run"),
    ] = False,
    plots: Annotated[
        str | None, typer.Option(help="Draw the charts as pictures too: png,svg,pdf.", rich_help_panel="Run")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=0, help="Held-out prompts to answer before and after, for the page.", rich_help_panel="Run"),
    ] = SAMPLED,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say only what looks wrong.", rich_help_panel="Run")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel="Run")
    ] = False,
) -> None:
    """Train LoRA adapters on preference pairs.

    The run's folder (--adapter-path) loads in mlx_lm.generate, fuse and server, and holds the metrics, the resolved
    config and checkpoints beside the adapter.

    [bold]Examples[/]

      mlx-dpo train --model ./Qwen3-4B-4bit --data pairs.jsonl

      mlx-dpo train --model ./Qwen3-4B-4bit --data folder/ --epochs 2 --beta 0.05 --adapter-path runs/a

      mlx-dpo train -c runs/a/config.yaml --learning-rate 2e-5 --adapter-path runs/b

      mlx-dpo train --resume --adapter-path runs/a
    """
    resolved = _resolve(config, flags, resume)
    from mlx_dpo.cli.reporting import finish, listeners
    from mlx_dpo.reporting.pictures import kinds_of
    from mlx_dpo.training.run import train as run

    kinds = kinds_of(plots)
    interrupt = StopOnInterrupt()
    listener = Listeners(listeners(samples=samples, live=live_report, quiet=quiet), interrupt)
    result = run(resolved, listener=listener, resume=resume, stop=interrupt.stop)
    told = finish(result, kinds)
    if json:
        print_json({**result.to_mapping(), **told})
    elif not quiet:
        from mlx_dpo.reporting.result import show_result

        show_result(results, result, resolved.model)


def _resolve(file: Path | None, flags: dict[str, Any], resume: bool) -> TrainConfig:
    """The config of the file, or of the run that is resumed, with the flags on top."""
    if resume and file is None:
        earlier = Path(flags.get("adapter_path", TrainConfig().adapter_path)) / "config.yaml"
        file = earlier if earlier.exists() else None
    return config_from(file, flags)


class StopOnInterrupt(Listener):
    """While training, the first Ctrl-C asks for an end after the step at hand, and the second ends at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.before = signal.getsignal(signal.SIGINT)

    def begin(self, plan: RunPlan) -> None:
        signal.signal(signal.SIGINT, self._first)

    def end(self) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.end()
        self.stop.set()
        notes.print("Stopping after this step; once more to stop at once.")
