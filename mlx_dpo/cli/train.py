"""mlx-dpo train"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import with_config_options
from mlx_dpo.cli.console import print_json, print_note, stderr_console, stdout_console
from mlx_dpo.cli.push import push_location, push_result_json
from mlx_dpo.config import TrainConfig, config_from
from mlx_dpo.distributed.launcher import launch_workers
from mlx_dpo.distributed.rank_environment import is_main_process, launcher_rank
from mlx_dpo.errors import Interrupted, UserError
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES
from mlx_dpo.training.listener import Listener, Listeners, RunPlan, TrainResult
from mlx_dpo.utils.hub_client import without_revision


@with_config_options()
def train(
    flags: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="YAML file of knobs; flags win over it.", rich_help_panel="Run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --adapter-path.", rich_help_panel="Run")
    ] = False,
    resume_anyway: Annotated[
        bool,
        typer.Option(
            "--resume-anyway", help="Go on even with other knobs, rows or another model.", rich_help_panel="Run"
        ),
    ] = False,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise/--no-supervise",
            help="Train in a process of its own, and start it again where the system ends it.",
            rich_help_panel="Run",
        ),
    ] = True,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes of this machine that train together, by mlx.launch.", rich_help_panel="Run"
        ),
    ] = 1,
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
    ] = DEFAULT_NUM_SAMPLES,
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

      mlx.launch --hostfile hosts.json --backend ring -- mlx-dpo train --model ... --data ...

    The same command again goes on with a run that is unfinished. Where the system ends training (memory, the display's
    watchdog, a crash), it is started again from its last checkpoint; Ctrl-C saves, and a second one stops at once.
    """
    if workers > 1 and launcher_rank() is None:
        raise typer.Exit(launch_workers(workers))
    resolved = _resolve(config, flags, resume or resume_anyway)
    # What comes by stdin can't be read a second time.
    run = _supervised if supervise and "-" not in (resolved.data, resolved.valid_data) else _here
    from mlx_dpo.cli.run_listeners import NotePrinter, display_listeners, write_run_outputs

    if not is_main_process():
        _beside(lambda: run(resolved, NotePrinter(), resume, resume_anyway, samples))
        return
    from mlx_dpo.export.push.checkpoint_pusher import check_push_settings, push_finished_run
    from mlx_dpo.reporting.chart_images import parse_image_formats

    check_push_settings(resolved)
    kinds, watching = parse_image_formats(plots), display_listeners(resolved, live=live_report, warnings_only=quiet)
    result = run(resolved, watching, resume, resume_anyway, samples)
    told = write_run_outputs(result, watching, kinds)
    pushed = push_finished_run(resolved, result.run, print_note) if resolved.push_to_hub else None
    if json:
        at = {"pushed": pushed and push_result_json(pushed)} if resolved.push_to_hub else {}
        print_json({**result.to_mapping(), **told, **at})
    elif not quiet:
        from mlx_dpo.reporting.result_summary import print_result

        print_result(stdout_console, result, without_revision(resolved.model))
    if pushed and not json:
        stdout_console.print(f"It is on the Hub: {push_location(pushed)}", soft_wrap=True, markup=False)
    if resolved.push_to_hub and not pushed:
        raise typer.Exit(1)


def _supervised(
    config: TrainConfig, watching: Listener, resume: bool, resume_anyway: bool, samples: int
) -> TrainResult:
    """Train in a process of its own."""
    from mlx_dpo.supervision import supervise

    return supervise(config, listener=watching, resume=resume, resume_anyway=resume_anyway, samples=samples)


def _here(config: TrainConfig, watching: Listener, resume: bool, resume_anyway: bool, samples: int) -> TrainResult:
    """Train in this process."""
    from mlx_dpo.cli.run_listeners import recording_listeners
    from mlx_dpo.training.run import train as run

    interrupt = StopOnInterrupt()
    listener = (
        Listeners(recording_listeners(watching, samples), watching, interrupt) if is_main_process() else interrupt
    )
    return run(config, listener=listener, resume=resume, resume_anyway=resume_anyway, stop=interrupt.stop)


def _beside(run: Callable[[], TrainResult]) -> None:
    """Be another rank than 0, which says what there is to say; were this to fail, the launcher would end that one."""
    with suppress(UserError, Interrupted):
        run()


def _resolve(file: Path | None, flags: dict[str, Any], resume: bool) -> TrainConfig:
    """The config of the file, or of the run that is resumed, with the flags on top."""
    if resume and file is None:
        run = Path(flags.get("adapter_path", TrainConfig().adapter_path))
        found = [run / "config.yaml", *sorted(run.glob("checkpoints/[0-9]*/config.yaml"), reverse=True)]
        file = next((one for one in found if one.exists()), None)
    return config_from(file, flags)


class StopOnInterrupt(Listener):
    """While training, the first Ctrl-C asks for an end after the step at hand, and the second ends at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.before = signal.getsignal(signal.SIGINT)

    def on_run_start(self, plan: RunPlan) -> None:
        signal.signal(signal.SIGINT, self._first)

    def on_run_end(self) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.on_run_end()
        self.stop.set()
        stderr_console.print("Stopping after this step; once more to stop at once.")
