"""The command `mlx-dpo train`."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mlx_dpo.cli.backend_notes import print_blas_note
from mlx_dpo.cli.config_options import ConfigFile, Quiet, Supervise, check_adapter_flags, with_config_options
from mlx_dpo.cli.console import print_json, print_message, print_text, stdout_console
from mlx_dpo.cli.push import push_location, push_result_json
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, load_config, read_yaml
from mlx_dpo.distributed.launcher import launch_workers
from mlx_dpo.distributed.rank_environment import is_main_process, launcher_rank
from mlx_dpo.errors import Interrupted, UserError
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES, command_line
from mlx_dpo.training.events import RunPlan, TrainResult
from mlx_dpo.training.listener import Listener, Listeners
from mlx_dpo.utils.hub_client import without_revision


@with_config_options()
def train(
    flags: dict[str, Any],
    config: ConfigFile = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume from the last checkpoint in --adapter-path.", rich_help_panel="Run"),
    ] = False,
    resume_anyway: Annotated[
        bool,
        typer.Option(
            "--resume-anyway", help="Resume even if settings, data or model have changed.", rich_help_panel="Run"
        ),
    ] = False,
    supervise: Supervise = True,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Number of processes on this machine, started with mlx.launch.", rich_help_panel="Run"
        ),
    ] = 1,
    live_report: Annotated[
        bool,
        typer.Option("--live-report", help="Rewrite report.html after each report.", rich_help_panel="Run"),
    ] = False,
    plots: Annotated[
        str | None, typer.Option(help="Also save the report's charts as images: png,svg,pdf.", rich_help_panel="Run")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of held-out prompts to sample completions for, before and after, for the report.",
            rich_help_panel="Run",
        ),
    ] = DEFAULT_NUM_SAMPLES,
    quiet: Quiet = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel="Run")
    ] = False,
) -> None:
    """Train LoRA adapters on preference pairs.

    With --on-policy, these are the model's own answers to --prompts, sampled and compared by --judge while it trains.
    --loss ppo and --loss rloo learn from the scores of such answers, by a --reward-model or a --judge, without pairs.

    The run's folder (--adapter-path) loads in mlx_lm.generate, fuse and server. It holds the adapter, the metrics, the
    resolved config and the checkpoints.

    The same command resumes an unfinished run. If the system kills the training (out of memory, the display's watchdog,
    a crash), it is restarted from its last checkpoint. Ctrl-C saves and stops; a second Ctrl-C stops immediately.

    Examples:
      mlx-dpo train --model ./Qwen3-4B-4bit --data pairs.jsonl
      mlx-dpo train --model ./Qwen3-4B-4bit --data folder/ --epochs 2 --beta 0.05 --adapter-path runs/a
      mlx-dpo train --on-policy --model ./Qwen3-4B-4bit --prompts prompts.txt --judge judges.py:polite
      mlx-dpo train --loss ppo --model ./Qwen3-4B-4bit --prompts prompts.txt --reward-model reward-model
      mlx-dpo train -c runs/a/config.yaml --learning-rate 2e-5 --adapter-path runs/b
      mlx-dpo train --resume --adapter-path runs/a
      mlx.launch --hostfile hosts.json --backend ring -- mlx-dpo train --model ./Qwen3-4B-4bit --data pairs.jsonl
    """
    if workers > 1 and launcher_rank() is None:
        raise typer.Exit(launch_workers(workers))
    resolved = _resolve_config(config, flags, resume or resume_anyway)
    check_adapter_flags(resolved, flags)
    # Data from stdin can't be read again by a restarted process.
    run = train_supervised if supervise and "-" not in (resolved.data, resolved.valid_data) else train_here
    from mlx_dpo.cli.run_listeners import NotePrinter, display_listeners, write_run_outputs

    if not is_main_process():
        # Rank 0 prints errors. If another rank failed, the launcher would kill rank 0 before it can.
        with suppress(UserError, Interrupted):
            run(resolved, NotePrinter(), resume, resume_anyway, samples)
        return
    from mlx_dpo.cli.unwritten_outputs import find_unwritten_run
    from mlx_dpo.export.push.checkpoint_pusher import check_push_settings, push_finished_run
    from mlx_dpo.reporting.chart_images import parse_image_formats
    from mlx_dpo.reporting.result_summary import print_result

    check_push_settings(resolved)
    image_formats = parse_image_formats(plots)
    listeners = display_listeners(resolved, live=live_report, warnings_only=quiet)
    if not quiet:
        print_blas_note()
    names = {*flags, *(str(name).replace("-", "_") for name in (read_yaml(config) if config else ()))}
    unwritten = find_unwritten_run(resolved, names) if launcher_rank() is None else None
    if unwritten:
        print_message(
            f"The run in {resolved.adapter_path} has finished; its report and its model card are written now."
        )
        listeners.training_recorder.on_run_start(unwritten.plan)
    result = unwritten.result if unwritten else run(resolved, listeners, resume, resume_anyway, samples)
    summary = write_run_outputs(result, listeners, image_formats)
    pushed = push_finished_run(resolved, result.run, print_message) if resolved.push_to_hub else None
    if json:
        push_json = {"pushed": pushed and push_result_json(pushed)} if resolved.push_to_hub else {}
        print_json({**result.to_mapping(), **summary, **push_json})
    elif not quiet:
        print_result(stdout_console, result, without_revision(resolved.model))
    if pushed and not json:
        print_text(f"It is on the Hub: {push_location(pushed)}")
    if resolved.push_to_hub and not pushed:
        raise typer.Exit(1)


def train_supervised(
    config: TrainConfig, listener: Listener, resume: bool, resume_anyway: bool, samples: int
) -> TrainResult:
    """Train in a child process."""
    from mlx_dpo.supervision.supervisor import supervise

    return supervise(
        config,
        listener=listener,
        resume=resume,
        resume_anyway=resume_anyway,
        recorder="mlx_dpo.reporting.run_recorder:recording_listeners",
        recorder_options={"num_samples": samples, "command": command_line()},
    )


def train_here(config: TrainConfig, listener: Listener, resume: bool, resume_anyway: bool, samples: int) -> TrainResult:
    """Train in this process."""
    from mlx_dpo.reporting.run_recorder import recording_listeners
    from mlx_dpo.training.run import train as train_run

    interrupt = StopOnInterrupt()
    listeners: Listener = interrupt
    if is_main_process():
        listeners = Listeners(recording_listeners(listener, samples, command_line()), listener, interrupt)
    try:
        return train_run(config, listener=listeners, resume=resume, resume_anyway=resume_anyway, stop=interrupt.stop)
    except Interrupted as interruption:
        raise Interrupted(interruption.step, interruption.checkpoint, interrupt.exit_code) from None


def _resolve_config(file: Path | None, flags: dict[str, Any], resume: bool) -> TrainConfig:
    """The config in the file, or of the run to resume, overridden by the flags."""
    if resume and file is None:
        from mlx_dpo.training.run_folder import RunFolder

        run = RunFolder(flags.get("adapter_path", TrainConfig.adapter_path))
        files = [folder / CONFIG_FILE for folder in (run.path, *reversed(run.checkpoints()))]
        file = next((path for path in files if path.exists()), None)
    return load_config(file, flags)


class StopOnInterrupt(Listener):
    """Handles the stop signals while training: the first one stops the run, saved, the second ends the process.

    Attributes:
        stop: set when the run should stop.
        exit_code: exit code of a process that the signal has ended.
    """

    def __init__(self) -> None:
        self.stop, self.exit_code = threading.Event(), 128 + signal.SIGINT
        self.previous_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_run_start(self, plan: RunPlan) -> None:
        """Install the handler."""
        for number in self.previous_handlers:
            signal.signal(number, self._request_stop)

    def on_run_end(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.on_run_end()
        self.exit_code = 128 + number
        self.stop.set()
        print_message("Stopping; finished steps are saved. Press Ctrl-C again to stop immediately.")
