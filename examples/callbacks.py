"""Callbacks: a `Listener` receives the events of a run, and may stop it. `Listeners` joins several.

    python examples/callbacks.py [FOLDER] [TRACKER ...]

Trackers are listeners too: wandb, tensorboard, trackio or mlflow, if they are installed.
"""

import csv
import sys
import tempfile
import threading
from pathlib import Path

from mlx_dpo import Interrupted, Listener, TrainConfig, train
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.trackers import create_trackers
from mlx_dpo.training.listener import Listeners


class MetricsTable(Listener):
    """Writes the held-out metrics to a CSV file, with a row per evaluation."""

    def __init__(self, file):
        self.file, self.rows = Path(file), []

    def on_evaluation_metrics(self, metrics):
        self.rows.append(metrics)

    def on_run_end(self):
        with self.file.open("w", newline="") as f:
            writer = csv.DictWriter(f, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)


class StopAtAccuracy(Listener):
    """Stops the run, with everything saved, when held-out accuracy reaches a value."""

    def __init__(self, accuracy):
        self.accuracy, self.stop = accuracy, threading.Event()

    def on_evaluation_metrics(self, metrics):
        if metrics["eval_rewards/accuracies"] >= self.accuracy:
            self.stop.set()


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
stop_at_accuracy = StopAtAccuracy(0.9)
config = TrainConfig(
    model=str(MODEL),
    adapter_path=f"{folder}/adapter",
    iters=100,
    steps_per_eval=5,
    steps_per_report=5,
    learning_rate=3e-4,
)
try:
    train(
        config,
        rows=load_pairs("train")[:120],
        valid_rows=load_pairs("valid")[:16],
        listener=Listeners(
            MetricsLog(), MetricsTable(f"{folder}/held_out.csv"), stop_at_accuracy, *create_trackers(sys.argv[2:])
        ),
        stop=stop_at_accuracy.stop,
    )
except Interrupted as interruption:
    print(interruption)
