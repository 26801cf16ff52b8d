"""Experiment trackers: wandb, tensorboard, trackio and mlflow, each a `Listener` of the run.

Metrics are those of metrics.jsonl, under the prefixes that transformers and TRL give them: train/loss,
eval/rewards/margins. Each tracker is an optional install, and takes its own environment variables.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from mlx_dpo.config import read_yaml
from mlx_dpo.errors import UserError
from mlx_dpo.training.listener import Listener, Metrics, RunPlan

DEFAULT_PROJECT = "mlx-dpo"  # where the environment names none
EVAL_PREFIX = "eval_"
TRACKERS_FILE = (
    "trackers.json"  # in a run's folder: what each tracker calls the run, so that one that is resumed goes on there
)


def create_trackers(names: Iterable[str] | None, notify: Callable[[str], None] = lambda text: None) -> list[Tracker]:
    """The trackers of these names. Raises `UserError` where one is unknown or not installed.

    Args:
        say: hears where one had to be given up.
    """
    wanted = list(dict.fromkeys(names or ()))
    return [] if wanted == ["none"] else [_known(name)(notify) for name in wanted]


def _known(name: str) -> type[Tracker]:
    if name not in TRACKERS:
        near = difflib.get_close_matches(name, TRACKERS, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else None
        message = f"{name!r} is not one of {', '.join(TRACKERS)}, none"
        raise UserError(message, field="report_to", hint=hint)
    return TRACKERS[name]


class Tracker(Listener):
    """One tracker's run. What goes wrong with it while training costs the tracking, not the training.

    Attributes:
        name: as --report-to has it.
        package: what is imported.
    """

    name: str
    package: str

    def __init__(self, notify: Callable[[str], None]) -> None:
        self.notify, self.active = notify, False
        try:
            self.module = self.import_package()
        except ImportError:
            hint = f"pip install {self.package}"
            raise UserError(f"{self.name} is not installed", field="report_to", hint=hint) from None

    def import_package(self) -> Any:
        """The tracker's module."""
        return importlib.import_module(self.package)

    def on_run_start(self, plan: RunPlan) -> None:
        if not self.active:  # a run that is begun again after a crash goes on in the same one
            with self._guarded("could not be started"):
                self.open(plan, read_yaml(plan.run / "config.yaml"))
                self.active = True

    def on_metrics(self, metrics: Metrics) -> None:
        if self.active:
            with self._guarded("was given up"):
                self.log(with_split_prefix(metrics), int(metrics["step"]))

    evaluation = on_metrics

    def on_run_end(self) -> None:
        if self.active:
            self.active = False
            with self._guarded("could not be finished"):
                self.close()

    @abstractmethod
    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        """Start a run, or go on with the one of a run that is resumed."""

    @abstractmethod
    def log(self, metrics: Metrics, step: int) -> None:
        """Record metrics, under their prefixes."""

    @abstractmethod
    def close(self) -> None:
        """The run is over."""

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                yield
        except Exception as error:
            self.active = False
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self.notify(f"{self.name} {what}: {reason}")


def with_split_prefix(metrics: Mapping[str, float]) -> Metrics:
    """Metrics under train/ and eval/, as transformers' `rewrite_logs` has them; the step is the axis they stand on."""
    return {
        f"eval/{name.removeprefix(EVAL_PREFIX)}" if name.startswith(EVAL_PREFIX) else f"train/{name}": value
        for name, value in metrics.items()
        if name != "step"
    }


class Wandb(Tracker):
    """Weights & Biases: WANDB_PROJECT, WANDB_MODE=offline and its other variables hold."""

    name = package = "wandb"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        known = _remembered(plan, self.name)
        project = os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)
        run = self.module.init(project=project, name=plan.run.name, config=config, id=known, resume="allow")
        _remember(plan, self.name, run.id)
        self.module.define_metric("train/global_step")
        self.module.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, metrics: Metrics, step: int) -> None:
        self.module.log({**metrics, "train/global_step": step})

    def close(self) -> None:
        self.module.finish()


class TensorBoard(Tracker):
    """TensorBoard files in the run's folder, under tensorboard/; written by tensorboardX, or by torch where it is."""

    name, package = "tensorboard", "tensorboardX"

    def import_package(self) -> Any:
        try:
            return importlib.import_module(self.package)
        except ImportError:
            return importlib.import_module("torch.utils.tensorboard")

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        purge = plan.first_step + 1 if plan.first_step else None  # what a lost piece of the run had written
        self.writer = self.module.SummaryWriter(str(plan.run / "tensorboard"), purge_step=purge)
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def log(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Trackio(Tracker):
    """Hugging Face's local tracker: `trackio show` opens it. TRACKIO_PROJECT and its other variables hold."""

    name = package = "trackio"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        project = os.environ.get("TRACKIO_PROJECT", DEFAULT_PROJECT)
        known = _remembered(plan, self.name) or f"{plan.run.name}-{_fresh(plan)}"
        self.module.init(project=project, name=known, config=config, resume="allow")
        _remember(plan, self.name, known)

    def log(self, metrics: Metrics, step: int) -> None:
        self.module.log(metrics, step=step)

    def close(self) -> None:
        self.module.finish()


class MLflow(Tracker):
    """MLflow: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other variables hold."""

    name = package = "mlflow"

    def open(self, plan: RunPlan, config: dict[str, Any]) -> None:
        self.module.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT))
        known = _remembered(plan, self.name)
        run = self.module.start_run(run_id=known, run_name=None if known else plan.run.name)
        if not known:
            self.module.log_params({name: str(value) for name, value in config.items()})
        _remember(plan, self.name, run.info.run_id)

    def log(self, metrics: Metrics, step: int) -> None:
        self.module.log_metrics(metrics, step=step)

    def close(self) -> None:
        self.module.end_run()


def _remembered(plan: RunPlan, tracker: str) -> str | None:
    file = plan.run / TRACKERS_FILE
    return _read(file).get(tracker) if plan.first_step else None


def _remember(plan: RunPlan, tracker: str, known: str) -> None:
    file = plan.run / TRACKERS_FILE
    file.write_text(json.dumps({**_read(file), tracker: known}) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, str]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _fresh(plan: RunPlan) -> str:
    """Something that another run of the same folder's name would not have."""
    said = f"{plan.run.resolve()} {(plan.run / 'config.yaml').stat().st_mtime_ns}"
    return hashlib.blake2b(said.encode(), digest_size=3).hexdigest()


TRACKERS: dict[str, type[Tracker]] = {one.name: one for one in (Wandb, TensorBoard, Trackio, MLflow)}
