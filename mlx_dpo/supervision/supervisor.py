"""The parent of a training process: forwards its events, and restarts it from its last checkpoint if it crashes.

Metal ends a process with SIGABRT when memory runs out and when its watchdog finds a command too long while the display
is on; the system ends one with SIGKILL when memory runs out. Python can catch neither: only another process can.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.rank_environment import is_main_process, is_tcp_ring, launcher_rank
from mlx_dpo.errors import GaveUp, Interrupted, UserError
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.supervision.event_pipe import (
    OnlyMainHasWork,
    ProcessEnd,
    ProcessFailed,
    ProcessFinished,
    ProcessInterrupted,
    ProcessLostRank,
    ProcessOutOfMemory,
    parse_message,
)
from mlx_dpo.training.events import Event, Note, RunEnd, RunStart, TrainResult
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.signals import handle_stop_signals, stop_signals_blocked

MAX_CRASHES = 3  # without a checkpoint between them
KILL_DELAY = 5.0  # seconds that a process may take to end after the second signal
RANK_KILL_DELAY = 20.0  # seconds that a rank may take to stop, since it may wait for a rank that is gone
OUT_OF_MEMORY_SIGNALS = {
    signal.SIGABRT: "as Metal does when memory runs out, or when a command of the GPU kept the display waiting",
    signal.SIGKILL: "as the system does when memory runs out",
}
NATIVE_CRASH = "a crash in compiled code"


def supervise(
    config: TrainConfig,
    *,
    listener: Listener,
    resume: bool = False,
    resume_anyway: bool = False,
    recorder: str | None = None,
    recorder_options: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Run `train` in a child process, and restart it from the last checkpoint when the system ends it.

    If a launcher has started several processes, each supervises its own. When one crashes the others end too, and all
    restart; rank 0 counts the crashes, since it has the checkpoints. Only ranks on a TCP ring can join again.

    Args:
        config: the run's settings.
        listener: receives every event but evaluation snapshots, in this process.
        resume: as in `train`.
        resume_anyway: as in `train`.
        recorder: "module:function" that is called in the training process with a listener that forwards events to this
            one, and returns a listener there, which may use the model.
        recorder_options: keyword arguments of that function, as plain values.

    Returns:
        The result of `train`.

    Raises:
        UserError: as `train` does.
        Interrupted: as `train` does.
        GaveUp: the process crashed `MAX_CRASHES` times without a checkpoint between them.
        subprocess.CalledProcessError: the training process ended with a traceback.
    """
    folder, fallback, crashes = RunFolder(config.adapter_path), NO_FALLBACK, list[str]()
    latest = folder.latest_checkpoint()
    try:
        while True:
            job = training_job(
                config,
                resume=resume,
                resume_anyway=resume_anyway,
                oom_fallback=fallback,
                recorder=recorder,
                recorder_options=recorder_options,
            )
            process = TrainingProcess(job, listener)
            with handle_stop_signals(process.forward_signal):
                process.follow()
            if process.crash_reason is None:
                return process.outcome()
            if process.only_main_has_work and not process.lost_other_rank:
                raise SystemExit(0)  # rank 0 needs it no more
            if process.stop_signal:
                raise SystemExit(128 + process.stop_signal)
            previous, latest = latest, folder.latest_checkpoint()
            crashes = [process.crash_reason] if latest != previous else [*crashes, process.crash_reason]
            crash = f"{_process_name()} {process.crash_reason}."
            if launcher_rank() is not None and not is_tcp_ring():
                raise GaveUp(f"{crash} What was trained is saved: the same command resumes it.")
            if len(crashes) == MAX_CRASHES and is_main_process():
                raise GaveUp(_crash_report(crashes, latest))
            fallback = next_fallback(fallback) if process.out_of_memory else fallback
            if is_main_process() or not process.lost_other_rank:  # else that rank and rank 0 report it
                listener.handle(Note(f"{crash} {_restart_text(latest, fallback)}"))
            # What was changed on purpose was accepted when the run began; a run without a checkpoint starts again.
            resume = latest is not None
    finally:
        listener.handle(RunEnd())


def training_job(
    config: TrainConfig,
    *,
    resume: bool = False,
    resume_anyway: bool = False,
    oom_fallback: OomFallback = NO_FALLBACK,
    recorder: str | None = None,
    recorder_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a `TrainingProcess` is to do, as plain values. For the arguments see `supervise` and `train`."""
    return {
        "config": config.to_mapping(),
        "resume": resume,
        "resume_anyway": resume_anyway,
        "oom_fallback": asdict(oom_fallback),
        "recorder": recorder,
        "recorder_options": dict(recorder_options or {}),
    }


def next_fallback(fallback: OomFallback) -> OomFallback:
    """Return the next memory reduction: micro-batches of half the size first, then full gradient checkpointing."""
    if fallback == NO_FALLBACK:
        return OomFallback(fallback.micro_batch_share / 2)
    return OomFallback(fallback.micro_batch_share, grad_checkpoint=True)


def _process_name() -> str:
    return "the training process" if launcher_rank() is None else f"rank {launcher_rank()}: the training process"


def _restart_text(checkpoint: Path | None, fallback: OomFallback) -> str:
    start = f"Resuming from {checkpoint}" if checkpoint else "Nothing was saved yet: starting again"
    if not is_main_process():
        start = "Restarting it, to resume with the other ranks"
    share = fallback.micro_batch_share
    size = f", with micro-batches of {share:.0%} the size" if share < 1 else ""
    return start + size + (" and gradient checkpointing of all layers." if fallback.grad_checkpoint else ".")


def _crash_report(crashes: list[str], checkpoint: Path | None) -> str:
    kept = f"What was trained is in {checkpoint}: resume with --resume" if checkpoint else "Nothing was saved: retry"
    reasons = "\n".join(f"  {i}. it {reason}" for i, reason in enumerate(crashes, 1))
    return (
        f"the training process crashed {len(crashes)} times without a checkpoint between:\n{reasons}\n"
        f"{kept}, with a lower --memory-limit or --max-length, or --save-every 10.\n"
        "`mlx-dpo doctor` checks this machine."
    )


class TrainingProcess:
    """A child process that trains.

    Attributes:
        crash_reason: why the system ended it, for display; None if it ended by itself.
        out_of_memory: whether memory may have run out.
        lost_other_rank: whether it ended because the connection to another rank was lost.
        only_main_has_work: whether nothing is left to do for this rank.
        stop_signal: the signal that requested a stop; 0 if there was none.
    """

    def __init__(self, job: dict[str, Any], listener: Listener) -> None:
        """Start the process.

        Args:
            job: what `training_job` returns.
            listener: receives the run's events.
        """
        self.listener = listener
        self.end: ProcessEnd | None = None
        self.has_begun, self.stop_signal, self.only_main_has_work = False, 0, False
        self.crash_reason: str | None = None
        self.out_of_memory = self.lost_other_rank = False
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "mlx_dpo.supervision.training_process", str(write_fd), json.dumps(job)]
        # In a session of its own, so that Ctrl-C arrives here and is passed on; stdout is for results only.
        with stop_signals_blocked():  # until it handles them: while it is imported, Python would print a traceback
            self.process = subprocess.Popen(command, stdout=2, pass_fds=[write_fd], start_new_session=True)
        os.close(write_fd)
        self.pipe = os.fdopen(read_fd, encoding="utf-8")

    def follow(self) -> None:
        """Forward the process's events until it ends, and determine why it did."""
        with self.pipe:
            for line in self.pipe:
                self._receive(parse_message(line))
        code = self.process.wait()
        match self.end:
            case None if code < 0:
                number = signal.Signals(-code)
                self.out_of_memory = number in OUT_OF_MEMORY_SIGNALS
                self.crash_reason = f"was ended by {number.name}, {OUT_OF_MEMORY_SIGNALS.get(number, NATIVE_CRASH)}"
            case ProcessOutOfMemory(reason):
                self.crash_reason, self.out_of_memory = f"was ended by mlx: {reason}", True
            case ProcessLostRank(reason):
                self.crash_reason, self.lost_other_rank = f"lost connection to another rank ({reason})", True

    def _receive(self, message: Any) -> None:
        if isinstance(message, ProcessEnd):
            self.end = message
        elif isinstance(message, OnlyMainHasWork):
            self.only_main_has_work = True
        elif isinstance(message, Event) and not isinstance(message, RunEnd):  # the run may go on in another process
            self.has_begun = self.has_begun or isinstance(message, RunStart)
            self.listener.handle(message)

    def outcome(self) -> TrainResult:
        """Return the result of a process that ended by itself, or raise what `train` raised there."""
        match self.end:
            case ProcessFinished(result):
                return result
            case ProcessFailed(error):
                raise UserError.from_mapping(error)
            case ProcessInterrupted(step, checkpoint):
                raise Interrupted(step, checkpoint, 128 + (self.stop_signal or signal.SIGINT))
        code = self.process.returncode
        if self.stop_signal and code > 128:
            raise SystemExit(code)  # before training began, or at the second signal
        raise subprocess.CalledProcessError(code, "the training process")

    def forward_signal(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to the training process; the second one ends it at once."""
        is_repeated, self.stop_signal = bool(self.stop_signal), number
        if self.has_begun and not is_repeated and is_main_process():
            cause = f"received {signal.Signals(number).name}: " if number != signal.SIGINT else ""
            self.listener.handle(Note(f"{cause}stopping; finished steps are saved. Once more to stop at once."))
        self.process.send_signal(number)
        if is_repeated:
            try:
                self.process.wait(KILL_DELAY)
            except subprocess.TimeoutExpired:
                self.process.kill()
        elif launcher_rank() is not None and not is_tcp_ring():  # it may wait for a rank that is gone
            timer = threading.Timer(RANK_KILL_DELAY, self.process.kill)
            timer.daemon = True
            timer.start()
