"""Train with this project on a case and print its figures as one JSON object; peers.py and growth.py call it.

    python benchmarks/drive_ours.py CASE [--batch-size 4] [--steps 6] [--epochs 2] [--memory-limit 2GB]

An epoch is the first `batch-size * steps` pairs of the case. The reference is measured in the first epoch, as the pairs
come by; a cache of it from an earlier run would spoil the measurement, so the process must be given an empty
XDG_CACHE_HOME (`processes.measure` does).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
from processes import resident_peak

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.training.listener import Metrics, RunPlan


class StepClock(Listener):
    """Records the times of the start and of each step, and the number of trained parameters."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.trained_parameters = 0

    def on_run_start(self, plan: RunPlan) -> None:
        self.trained_parameters = plan.trainable_parameters
        self.stamps.append(time.perf_counter())

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.stamps.append(time.perf_counter())


def drive(options: argparse.Namespace) -> dict[str, object]:
    """Train. Returns the seconds of each step and the peak memory."""
    pairs = options.batch_size * options.steps
    lines = (options.case / "data" / "train.jsonl").read_text().splitlines()[:pairs]
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=str(options.case / "model"),
            adapter_path=str(Path(folder) / "run"),
            batch_size=options.batch_size,
            epochs=options.epochs,
            max_length=options.max_length,
            grad_checkpoint=options.grad_checkpoint,
            memory_limit=options.memory_limit,
            valid_pairs=0,
            steps_per_eval=0,
            save_every=0,
        )
        result = train(config, rows=[json.loads(line) for line in lines], listener=clock)
    seconds = [round(b - a, 4) for a, b in pairwise(clock.stamps)]
    return {
        "pairs": len(lines),
        "first_epoch": seconds[: result.steps // options.epochs],
        "later_epochs": seconds[result.steps // options.epochs :],
        "reference_seconds": 0.0,  # within the first epoch's steps
        "trained_parameters": clock.trained_parameters,
        "peak_mb": round(mx.get_peak_memory() / 1e6, 1),
        "resident_peak_mb": resident_peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    for flag, default in (("batch-size", 4), ("steps", 6), ("epochs", 2), ("max-length", 2048)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--grad-checkpoint", action="store_true")
    parser.add_argument("--memory-limit", help="like 2GB")
    options = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = drive(options)
    print(json.dumps(result), file=stdout)


if __name__ == "__main__":
    main()
