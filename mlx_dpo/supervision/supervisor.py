"""The parent of a training process: shows what it does, and starts it again from its last checkpoint when it dies.

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
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.rank_environment import is_main_process, is_tcp_ring, launcher_rank
from mlx_dpo.errors import GaveUp, Interrupted, UserError
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES, command_line
from mlx_dpo.supervision import event_pipe as events
from mlx_dpo.training.listener import Listener, TrainResult
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.signals import handle_stop_signals

MAX_CRASHES = 3  # without a checkpoint between them
KILL_DELAY = 5.0  # seconds that a process is given to end at once
RANK_KILL_DELAY = 20.0  # the same, where it is asked to end and may not hear
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
    samples: int = DEFAULT_NUM_SAMPLES,
) -> TrainResult:
    """`train` in a child process, started again from the last checkpoint when the system ends it.

    Where a launcher has started several processes, each supervises its own. Those of the others end when one dies, and
    so all start again; rank 0 counts, since it has the checkpoints. Of mlx's engines only a ring can be joined again.

    Args:
        samples: held-out prompts that are answered before and after, for the page.

    Raises: `UserError` and `Interrupted` as `train` does; `GaveUp` after `MOST_DEATHS` deaths without a checkpoint
    between them; `subprocess.CalledProcessError` where it ends by a fault of its own.
    """
    folder, caution, deaths = RunFolder(config.adapter_path), NO_FALLBACK, list[str]()
    latest = folder.latest_checkpoint()
    try:
        while True:
            order = {
                "config": config.to_mapping(),
                "resume": resume,
                "resume_anyway": resume_anyway,
                "caution": asdict(caution),
                "samples": samples,
                "command": command_line(),
            }
            child = TrainingProcess(order, listener)
            with handle_stop_signals(child.forward_signal):
                child.follow()
            if child.crash_reason is None:
                return child.outcome()
            if child.only_main_has_work and not child.lost_other_rank:
                raise SystemExit(0)  # rank 0 needs it no more
            now = folder.latest_checkpoint()
            if child.stop_signal:  # it was to end anyway
                raise SystemExit(128 + child.stop_signal)
            deaths = [child.crash_reason] if now != latest else [*deaths, child.crash_reason]
            latest = now
            if launcher_rank() is not None and not is_tcp_ring():
                raise GaveUp(
                    f"{_whose()} {child.crash_reason}. What was trained is saved: the same command goes on with it."
                )
            if len(deaths) == MAX_CRASHES and is_main_process():
                raise GaveUp(_report(deaths, now))
            caution = next_fallback(caution) if child.out_of_memory else caution
            if is_main_process() or not child.lost_other_rank:  # that one has said it, and so does rank 0
                listener.on_note(f"{_whose()} {child.crash_reason}. {_going_on(now, caution)}")
            # What was changed on purpose was accepted when the run began; a run without a checkpoint begins anew.
            resume = now is not None
    finally:
        listener.on_run_end()


def next_fallback(fallback: OomFallback) -> OomFallback:
    """Half the micro-batch, then nothing kept for the backward pass."""
    return (
        OomFallback(fallback.micro_batch_share / 2)
        if fallback == NO_FALLBACK
        else OomFallback(fallback.micro_batch_share, grad_checkpoint=True)
    )


def _whose() -> str:
    return "the training process" if launcher_rank() is None else f"rank {launcher_rank()}: the training process"


def _going_on(checkpoint: Path | None, caution: OomFallback) -> str:
    start = f"Going on from {checkpoint}" if checkpoint else "Nothing was saved yet: starting again"
    if not is_main_process():
        start = "Starting it again, to go on with the others"
    how = f", with micro-batches of {caution.micro_batch_share:.0%} the size" if caution.micro_batch_share < 1 else ""
    return start + how + (" and all layers computed twice." if caution.grad_checkpoint else ".")


def _report(deaths: list[str], checkpoint: Path | None) -> str:
    kept = f"What was trained is in {checkpoint}: go on with --resume" if checkpoint else "Nothing was saved yet: try"
    times = "\n".join(f"  {i}. it {death}" for i, death in enumerate(deaths, 1))
    return (
        f"the training process died {len(deaths)} times without a checkpoint between:\n{times}\n"
        f"{kept}, with a lower --memory-limit or --max-length, or --save-every 10."
    )


class TrainingProcess:
    """A training process.

    Attributes:
        death: what the system ended it with, in words; None where it ended by itself.
        memory: whether it may have died of memory.
        lost_another: whether it ended since another rank's did.
        asked: the signal that it was asked to stop by; 0 where it was not.
    """

    def __init__(self, order: dict[str, Any], listener: Listener) -> None:
        self.listener = listener
        self.ending: tuple[str, list[Any]] | None = None
        self.begun, self.stop_signal, self.only_main_has_work = False, 0, False
        self.crash_reason: str | None = None
        self.out_of_memory = self.lost_other_rank = False
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "mlx_dpo.supervision.training_process", str(writing), json.dumps(order)]
        # In a session of its own, so that Ctrl-C comes here and is passed on; its stdout is ours alone.
        self.process = subprocess.Popen(command, stdout=2, pass_fds=[writing], start_new_session=True)
        os.close(writing)
        self.pipe = os.fdopen(reading, encoding="utf-8")

    def follow(self) -> None:
        """Deliver what it tells, until it is over."""
        with self.pipe:
            for line in self.pipe:
                self._hear(line)
        code = self.process.wait()
        if code < 0 and self.ending is None:
            self._died(signal.Signals(-code))
        elif self.ending is not None and self.ending[0] == events.OUT_OF_MEMORY:
            self.crash_reason, self.out_of_memory = f"was ended by mlx: {self.ending[1][0]}", True
        elif self.ending is not None and self.ending[0] == events.RANK_LOST:
            self.crash_reason, self.lost_other_rank = f"has lost another rank's ({self.ending[1][0]})", True

    def _hear(self, line: str) -> None:
        try:
            event, *arguments = json.loads(line)
        except ValueError:
            return  # it was cut off in the middle of a word
        if event in events.ENDINGS:
            self.ending = event, arguments
            return
        if event == events.ONLY_MAIN_HAS_WORK:
            self.only_main_has_work = True
            return
        self.begun = self.begun or event == "begin"
        events.dispatch_event(event, arguments, self.listener)

    def _died(self, number: signal.Signals) -> None:
        self.out_of_memory = number in OUT_OF_MEMORY_SIGNALS
        self.crash_reason = f"was ended by {number.name}, {OUT_OF_MEMORY_SIGNALS.get(number, NATIVE_CRASH)}"

    def outcome(self) -> TrainResult:
        """How it ended by itself. Raises what `train` would have raised."""
        if self.ending is None:
            code = self.process.returncode
            if self.stop_signal and code > 128:
                raise SystemExit(code)  # before training had begun, or at the second time of asking
            raise subprocess.CalledProcessError(code, "the training process")
        event, arguments = self.ending
        if event == events.REFUSED:
            raise UserError.from_mapping(arguments[0])
        if event == events.INTERRUPTED:
            step, checkpoint = arguments
            raise Interrupted(step, checkpoint, 128 + (self.stop_signal or signal.SIGINT))
        return events.parse_result(arguments[0])

    def forward_signal(self, number: int, frame: FrameType | None) -> None:
        """A signal that this process got is the training process's; at the second one it ends at once."""
        again, self.stop_signal = bool(self.stop_signal), number
        if self.begun and not again and is_main_process():
            why = f"asked to end by {signal.Signals(number).name}: " if number != signal.SIGINT else ""
            self.listener.on_note(f"{why}stopping after this step; once more to stop at once.")
        self.process.send_signal(number)
        if again:
            try:
                self.process.wait(KILL_DELAY)
            except subprocess.TimeoutExpired:
                self.process.kill()
        elif (
            launcher_rank() is not None and not is_tcp_ring()
        ):  # it may wait for a rank that is no more, and never know
            timer = threading.Timer(RANK_KILL_DELAY, self.process.kill)
            timer.daemon = True
            timer.start()
