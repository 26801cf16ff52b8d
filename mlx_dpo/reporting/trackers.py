"""Experiment trackers: wandb, tensorboard, trackio and mlflow, each a `Listener` of the run.

They log the metrics of metrics.jsonl under the prefixes of transformers and TRL: train/loss, eval/rewards/margins. Each
is an optional dependency and reads its own environment variables.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.errors import UserError
from mlx_dpo.reporting.evaluation_records import write_text_atomically
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.utils.formatting import EVAL_PREFIX, did_you_mean

DEFAULT_PROJECT = "mlx-dpo"  # unless the tracker's environment variable names another
TRACKERS_FILE = "trackers.json"  # in a run's folder: the id of the run in each tracker, so that a resumed run keeps it


def create_trackers(
    names: Iterable[str] | None, on_message: Callable[[str], None] = lambda text: None
) -> list[Tracker]:
    """The trackers of these names; ["none"] is the same as no names.

    Args:
        names: keys of `TRACKERS`.
        on_message: receives a warning when a tracker fails and is turned off.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    unique = list(dict.fromkeys(names or ()))
    return [] if unique == ["none"] else [_tracker_class(name)(on_message) for name in unique]


def _tracker_class(name: str) -> type[Tracker]:
    if name not in TRACKERS:
        message = f"{name!r} is not one of {', '.join(TRACKERS)}, none"
        raise UserError(message, field="report_to", hint=did_you_mean(name, TRACKERS) or None)
    return TRACKERS[name]


class Tracker(Listener):
    """A tracker's run. An error in it while training turns the tracker off and does not stop the training.

    Args:
        on_message: receives a warning when the tracker is turned off.

    Attributes:
        name: its name in --report-to.
        package: the package it imports.
        module: the imported package.

    Raises:
        UserError: the package is not installed.
    """

    name: str
    package: str

    def __init__(self, on_message: Callable[[str], None]) -> None:
        self.on_message, self.active = on_message, False
        try:
            self.module = self.import_package()
        except ImportError:
            hint = f"pip install {self.package}"
            raise UserError(f"{self.name} is not installed", field="report_to", hint=hint) from None

    def import_package(self) -> Any:
        """Import the tracker's package."""
        return importlib.import_module(self.package)

    def on_run_start(self, plan: RunPlan) -> None:
        """Start or resume the run in the tracker."""
        if not self.active:  # a run that was restarted after a crash continues in the same tracker run
            with self._off_on_error("could not be started"):
                self.open(plan, read_yaml(plan.run / CONFIG_FILE))
                self.active = True

    def on_metrics(self, metrics: Metrics) -> None:
        """Log the metrics."""
        if self.active:
            with self._off_on_error("was turned off"):
                self.log(with_split_prefix(metrics), int(metrics["step"]))

    on_evaluation_metrics = on_metrics

    def on_run_end(self) -> None:
        """Finish the run in the tracker."""
        if self.active:
            self.active = False
            with self._off_on_error("could not be finished"):
                self.close()

    @abstractmethod
    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Start the tracker's run, or continue it if the run was resumed."""

    @abstractmethod
    def log(self, metrics: Metrics, step: int) -> None:
        """Log metrics, whose names have their prefixes."""

    @abstractmethod
    def close(self) -> None:
        """Finish the tracker's run."""

    @contextmanager
    def _off_on_error(self, problem: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for the command's results
                yield
        except Exception as error:
            self.active = False
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self.on_message(f"{self.name} {problem}: {reason}")


def with_split_prefix(metrics: Mapping[str, float]) -> Metrics:
    """Metrics under train/ and eval/, as transformers' `rewrite_logs` names them, without the step."""
    return {
        f"eval/{name.removeprefix(EVAL_PREFIX)}" if name.startswith(EVAL_PREFIX) else f"train/{name}": value
        for name, value in metrics.items()
        if name != "step"
    }


class Wandb(Tracker):
    """Weights & Biases, with WANDB_PROJECT, WANDB_MODE=offline and its other environment variables."""

    name = package = "wandb"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Start or resume a wandb run."""
        run_id = _read_run_id(plan, self.name)
        project = os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)
        run = self.module.init(project=project, name=plan.run.name, config=config, id=run_id, resume="allow")
        _save_run_id(plan, self.name, run.id)
        self.module.define_metric("train/global_step")
        self.module.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, metrics: Metrics, step: int) -> None:
        """Log metrics at a global step."""
        self.module.log({**metrics, "train/global_step": step})

    def close(self) -> None:
        """Finish the wandb run."""
        self.module.finish()


class TensorBoard(Tracker):
    """TensorBoard files in tensorboard/ in the run's folder, written by tensorboardX or by torch."""

    name, package = "tensorboard", "tensorboardX"

    def import_package(self) -> Any:
        """Import tensorboardX, or torch if that is missing."""
        try:
            return importlib.import_module(self.package)
        except ImportError:
            return importlib.import_module("torch.utils.tensorboard")

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Open the event file and write the config."""
        purge = plan.first_step + 1 if plan.first_step else None  # steps after the checkpoint are logged again
        self.writer = self.module.SummaryWriter(str(plan.run / "tensorboard"), purge_step=purge)
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def log(self, metrics: Metrics, step: int) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class Trackio(Tracker):
    """Hugging Face's local tracker, with TRACKIO_PROJECT and its other variables. `trackio show` opens it."""

    name = package = "trackio"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Start or resume a trackio run."""
        project = os.environ.get("TRACKIO_PROJECT", DEFAULT_PROJECT)
        run_name = _read_run_id(plan, self.name) or f"{plan.run.name}-{_unique_suffix(plan)}"
        self.module.init(project=project, name=run_name, config=config, resume="allow")
        _save_run_id(plan, self.name, run_name)

    def log(self, metrics: Metrics, step: int) -> None:
        """Log metrics."""
        self.module.log(metrics, step=step)

    def close(self) -> None:
        """Finish the trackio run."""
        self.module.finish()


class MLflow(Tracker):
    """MLflow, with MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other environment variables."""

    name = package = "mlflow"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Start or resume an MLflow run and log its config."""
        self.module.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT))
        run_id = _read_run_id(plan, self.name)
        run = self.module.start_run(run_id=run_id, run_name=None if run_id else plan.run.name)
        if not run_id:
            self.module.log_params({name: str(value) for name, value in config.items()})
        _save_run_id(plan, self.name, run.info.run_id)

    def log(self, metrics: Metrics, step: int) -> None:
        """Log metrics."""
        self.module.log_metrics(metrics, step=step)

    def close(self) -> None:
        """End the MLflow run."""
        self.module.end_run()


def _read_run_id(plan: RunPlan, tracker: str) -> str | None:
    """The tracker's id of a resumed run; None for a new run."""
    return _read_run_ids(plan).get(tracker) if plan.first_step else None


def _save_run_id(plan: RunPlan, tracker: str, run_id: str) -> None:
    write_text_atomically(plan.run / TRACKERS_FILE, json.dumps({**_read_run_ids(plan), tracker: run_id}) + "\n")


def _read_run_ids(plan: RunPlan) -> dict[str, str]:
    file = plan.run / TRACKERS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _unique_suffix(plan: RunPlan) -> str:
    """Distinguishes this run from others whose folders have the same name."""
    identity = f"{plan.run.resolve()} {(plan.run / 'config.yaml').stat().st_mtime_ns}"
    return hashlib.blake2b(identity.encode(), digest_size=3).hexdigest()


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (Wandb, TensorBoard, Trackio, MLflow)}
