"""A tiny run that is killed and resumed, compared with one that is not."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

from mlx_dpo.config import TrainConfig
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.doctor.check import CheckOutcome, failed, passed
from mlx_dpo.supervision.supervisor import TrainingProcess, training_job
from mlx_dpo.training.events import Event, RunStart, Step
from mlx_dpo.training.listener import Listener

STEPS = 10
SAVE_EVERY = 2
KILL_AT = 3  # steps: a checkpoint is on disk, and a step after it is lost
BATCH_SIZE = 1
ROWS_FILE = "pairs.jsonl"
ADAPTER_FILE = "adapters.safetensors"
ADVICE = (
    "The same settings don't give the same run on this machine, so a resumed run ends in another adapter than an "
    "uninterrupted one. Report it with these versions."
)


class KillingListener(Listener):
    """Kills the training process after a step."""

    process: TrainingProcess | None = None

    def handle(self, event: Event) -> None:
        """Kill at the step."""
        if isinstance(event, Step) and event.step == KILL_AT and self.process:
            self.process.process.kill()


class FirstStepListener(Listener):
    """Keeps the number of steps that the run had done at its start."""

    first_step = 0

    def handle(self, event: Event) -> None:
        """Notice the start."""
        if isinstance(event, RunStart):
            self.first_step = event.plan.first_step


def check_resume() -> CheckOutcome:
    """Train the bundled model for a few steps, whole and killed and resumed, and compare the adapters' bytes."""
    with tempfile.TemporaryDirectory(prefix="mlx-dpo-doctor-") as folder:
        whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
        rows = load_pairs()[: STEPS * BATCH_SIZE]
        (Path(folder) / ROWS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        listener = KillingListener()
        process = TrainingProcess(training_job(_config(whole)), Listener())  # both at once: most of it is importing
        listener.process = TrainingProcess(training_job(_config(resumed)), listener)
        listener.process.follow()
        process.follow()
        if listener.process.process.returncode != -signal.SIGKILL:
            return _failed_run("to be killed", listener.process)
        if process.crash_reason:
            return _failed_run("without interruption", process)
        process.outcome()
        start = FirstStepListener()
        process = TrainingProcess(training_job(_config(resumed), resume=True), start)
        process.follow()
        if process.crash_reason:
            return _failed_run("resumed", process)
        process.outcome()
        expected, actual = ((run / ADAPTER_FILE).read_bytes() for run in (whole, resumed))
    killed = f"killed at step {KILL_AT} of {STEPS}, resumed after step {start.first_step}"
    if start.first_step not in range(SAVE_EVERY, STEPS):
        return failed(killed, ADVICE)
    if actual != expected:
        count = sum(a != b for a, b in zip(actual, expected, strict=False)) + abs(len(actual) - len(expected))
        whose = "are not those of the run that was not interrupted"
        return failed(f"{killed}: {count} of the adapter's {len(expected)} bytes {whose}", ADVICE)
    return passed(f"{killed}: the adapter has the bytes of a run that was not interrupted")


def _config(run: Path) -> TrainConfig:
    return TrainConfig(
        model=str(MODEL),
        data=str(run.parent / ROWS_FILE),
        adapter_path=str(run),
        batch_size=BATCH_SIZE,
        iters=STEPS,
        save_every=SAVE_EVERY,
        valid_pairs=0,
    )


def _failed_run(which: str, process: TrainingProcess) -> CheckOutcome:
    reason = process.crash_reason or f"ended by itself, with exit code {process.process.returncode}"
    return failed(
        f"the run {which}: the training process {reason}",
        "Training of the bundled model fails here: see what `mlx-dpo demo` reports.",
    )
