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
from mlx_dpo.distributed.rank_environment import leads, on_a_ring, rank
from mlx_dpo.errors import GaveUp, Interrupted, UserError
from mlx_dpo.forward.oom_fallback import CAREFREE, Caution
from mlx_dpo.reporting.evaluation_records import SAMPLED, typed
from mlx_dpo.supervision import event_pipe as events
from mlx_dpo.training.listener import Listener, TrainResult
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.signals import handled

MOST_DEATHS = 3  # without a checkpoint between them
PATIENCE = 5.0  # seconds that a process is given to end at once
GRACE = 20.0  # the same, where it is asked to end and may not hear
OF_MEMORY = {
    signal.SIGABRT: "as Metal does when memory runs out, or when a command of the GPU kept the display waiting",
    signal.SIGKILL: "as the system does when memory runs out",
}
CRASH = "a crash in compiled code"


def supervise(
    config: TrainConfig,
    *,
    listener: Listener,
    resume: bool = False,
    resume_anyway: bool = False,
    samples: int = SAMPLED,
) -> TrainResult:
    """`train` in a child process, started again from the last checkpoint when the system ends it.

    Where a launcher has started several processes, each supervises its own. Those of the others end when one dies, and
    so all start again; rank 0 counts, since it has the checkpoints. Of mlx's engines only a ring can be joined again.

    Args:
        samples: held-out prompts that are answered before and after, for the page.

    Raises: `UserError` and `Interrupted` as `train` does; `GaveUp` after `MOST_DEATHS` deaths without a checkpoint
    between them; `subprocess.CalledProcessError` where it ends by a fault of its own.
    """
    folder, caution, deaths = RunFolder(config.adapter_path), CAREFREE, list[str]()
    latest = folder.latest()
    try:
        while True:
            order = {
                "config": config.to_mapping(),
                "resume": resume,
                "resume_anyway": resume_anyway,
                "caution": asdict(caution),
                "samples": samples,
                "command": typed(),
            }
            child = Child(order, listener)
            with handled(child.forward):
                child.follow()
            if child.death is None:
                return child.outcome()
            if child.nothing_left and not child.lost_another:
                raise SystemExit(0)  # rank 0 needs it no more
            now = folder.latest()
            if child.asked:  # it was to end anyway
                raise SystemExit(128 + child.asked)
            deaths = [child.death] if now != latest else [*deaths, child.death]
            latest = now
            if rank() is not None and not on_a_ring():
                raise GaveUp(f"{_whose()} {child.death}. What was trained is saved: the same command goes on with it.")
            if len(deaths) == MOST_DEATHS and leads():
                raise GaveUp(_report(deaths, now))
            caution = more_careful(caution) if child.memory else caution
            if leads() or not child.lost_another:  # that one has said it, and so does rank 0
                listener.note(f"{_whose()} {child.death}. {_going_on(now, caution)}")
            # What was changed on purpose was accepted when the run began; a run without a checkpoint begins anew.
            resume = now is not None
    finally:
        listener.end()


def more_careful(caution: Caution) -> Caution:
    """Half the micro-batch, then nothing kept for the backward pass."""
    return Caution(caution.share / 2) if caution == CAREFREE else Caution(caution.share, grad_checkpoint=True)


def _whose() -> str:
    return "the training process" if rank() is None else f"rank {rank()}: the training process"


def _going_on(checkpoint: Path | None, caution: Caution) -> str:
    start = f"Going on from {checkpoint}" if checkpoint else "Nothing was saved yet: starting again"
    if not leads():
        start = "Starting it again, to go on with the others"
    how = f", with micro-batches of {caution.share:.0%} the size" if caution.share < 1 else ""
    return start + how + (" and all layers computed twice." if caution.grad_checkpoint else ".")


def _report(deaths: list[str], checkpoint: Path | None) -> str:
    kept = f"What was trained is in {checkpoint}: go on with --resume" if checkpoint else "Nothing was saved yet: try"
    times = "\n".join(f"  {i}. it {death}" for i, death in enumerate(deaths, 1))
    return (
        f"the training process died {len(deaths)} times without a checkpoint between:\n{times}\n"
        f"{kept}, with a lower --memory-limit or --max-length, or --save-every 10."
    )


class Child:
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
        self.begun, self.asked, self.nothing_left = False, 0, False
        self.death: str | None = None
        self.memory = self.lost_another = False
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
            self.death, self.memory = f"was ended by mlx: {self.ending[1][0]}", True
        elif self.ending is not None and self.ending[0] == events.RANK_LOST:
            self.death, self.lost_another = f"has lost another rank's ({self.ending[1][0]})", True

    def _hear(self, line: str) -> None:
        try:
            event, *arguments = json.loads(line)
        except ValueError:
            return  # it was cut off in the middle of a word
        if event in events.ENDINGS:
            self.ending = event, arguments
            return
        if event == events.NOTHING_LEFT:
            self.nothing_left = True
            return
        self.begun = self.begun or event == "begin"
        events.deliver(event, arguments, self.listener)

    def _died(self, number: signal.Signals) -> None:
        self.memory = number in OF_MEMORY
        self.death = f"was ended by {number.name}, {OF_MEMORY.get(number, CRASH)}"

    def outcome(self) -> TrainResult:
        """How it ended by itself. Raises what `train` would have raised."""
        if self.ending is None:
            code = self.process.returncode
            if self.asked and code > 128:
                raise SystemExit(code)  # before training had begun, or at the second time of asking
            raise subprocess.CalledProcessError(code, "the training process")
        event, arguments = self.ending
        if event == events.REFUSED:
            raise UserError.from_mapping(arguments[0])
        if event == events.INTERRUPTED:
            step, checkpoint = arguments
            raise Interrupted(step, checkpoint, 128 + (self.asked or signal.SIGINT))
        return events.result_of(arguments[0])

    def forward(self, number: int, frame: FrameType | None) -> None:
        """A signal that this process got is the training process's; at the second one it ends at once."""
        again, self.asked = bool(self.asked), number
        if self.begun and not again and leads():
            why = f"asked to end by {signal.Signals(number).name}: " if number != signal.SIGINT else ""
            self.listener.note(f"{why}stopping after this step; once more to stop at once.")
        self.process.send_signal(number)
        if again:
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        elif rank() is not None and not on_a_ring():  # it may wait for a rank that is no more, and never know
            timer = threading.Timer(GRACE, self.process.kill)
            timer.daemon = True
            timer.start()
