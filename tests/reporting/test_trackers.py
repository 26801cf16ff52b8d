"""Trackers, with fakes of their packages that record the calls (all four were also tried for real)."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlx_dpo import Interrupted, Listener, TrainConfig, UserError, train
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.reporting.trackers import TRACKERS, Tracker, create_trackers, with_split_prefix
from mlx_dpo.training.listener import Listeners
from tests.conftest import CHECKPOINT, PAIRS

Logged = list[tuple[str, int, float]]


class FakeTrackerPackage(ModuleType):
    """All four packages in one: the functions that are called of each, which record metrics by run."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: dict[str, Logged] = {}
        self.current, self.open, self.fails = "", False, False
        self.config: Any = None

    def _start(self, run_id: str | None) -> SimpleNamespace:
        assert not self.open
        self.current, self.open = run_id or f"run{len(self.runs)}", True
        self.runs.setdefault(self.current, [])
        return SimpleNamespace(id=self.current, info=SimpleNamespace(run_id=self.current))

    def _log(self, metrics: dict[str, float], step: int) -> None:
        assert self.open
        print("something on stdout")
        if self.fails:
            raise ConnectionError("the server\nis gone")
        self.runs[self.current] += [(name, step, value) for name, value in metrics.items()]

    def _finish(self) -> None:
        assert self.open
        self.open = False

    # wandb and trackio
    def init(self, *, project: str, name: str, config: Any, resume: str, id: str | None = None) -> SimpleNamespace:
        assert project == "mlx-dpo" and resume == "allow"
        self.config = config
        return self._start(name if self.__name__ == "trackio" else id)

    def define_metric(self, name: str, **options: Any) -> None:
        assert name == "train/global_step" or options == {"step_metric": "train/global_step", "step_sync": True}

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        metrics = dict(metrics)
        self._log(metrics, int(metrics.pop("train/global_step")) if step is None else step)

    finish = _finish

    # mlflow
    def set_experiment(self, name: str) -> None:
        assert name == "mlx-dpo"

    def start_run(self, *, run_id: str | None, run_name: str | None) -> SimpleNamespace:
        assert (run_id is None) != (run_name is None)
        return self._start(run_id)

    def log_params(self, params: dict[str, str]) -> None:
        self.config = params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._log(metrics, step)

    end_run = _finish

    # tensorboardX
    def SummaryWriter(self, logdir: str, purge_step: int | None) -> SimpleNamespace:
        self._start(logdir)
        self.runs[logdir] = [entry for entry in self.runs[logdir] if purge_step is None or entry[1] < purge_step]
        return SimpleNamespace(
            add_text=lambda name, text: setattr(self, "config", json.loads(text.strip("`json\n"))),
            add_scalar=lambda name, value, step: self._log({name: value}, step),
            flush=lambda: None,
            close=self._finish,
        )


def install_fake(name: str, monkeypatch: pytest.MonkeyPatch) -> FakeTrackerPackage:
    """Install a fake of a tracker's package."""
    fake = FakeTrackerPackage(name)
    monkeypatch.setitem(sys.modules, TRACKERS[name].package, fake)
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return fake


@pytest.fixture(params=list(TRACKERS))
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTrackerPackage:
    """The fake package of each tracker."""
    return install_fake(request.param, monkeypatch)


def config(folder: Path, **knobs: Any) -> TrainConfig:
    common = {"data": str(PAIRS), "valid_data": str(PAIRS), "steps_per_report": 1, "steps_per_eval": 2}
    return TrainConfig(model=str(CHECKPOINT), adapter_path=str(folder), **{**common, "iters": 3, **knobs})


class StopAt(Listener):
    def __init__(self, step: int) -> None:
        self.at, self.stop = step, threading.Event()

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.at:
            self.stop.set()


def test_it_logs_what_is_in_metrics_jsonl(package: FakeTrackerPackage, tmp_path: Path) -> None:
    whole, stop = config(tmp_path / "run", iters=5), StopAt(3)
    with pytest.raises(Interrupted):
        train(whole, listener=Listeners(MetricsLog(), *create_trackers([package.__name__]), stop), stop=stop.stop)
    assert not package.open and package.config["model"] == str(CHECKPOINT)
    train(whole, listener=Listeners(MetricsLog(), *create_trackers([package.__name__])), resume=True)
    expected = [
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", line["step"], value)
        for line in read_metrics(tmp_path / "run")
        for name, value in line.items()
        if name != "step"
    ]
    (logged,) = package.runs.values()  # the resumed run continues the first
    assert logged == expected and len(logged) > 50


def started(package: FakeTrackerPackage, folder: Path, on_message: Any = None) -> Tracker:
    """A tracker of a run that has just started."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: m\nloss: sigmoid\n")
    (tracker,) = create_trackers([package.__name__], on_message or (lambda text: None))
    tracker.on_run_start(SimpleNamespace(run=folder, first_step=0))  # type: ignore[arg-type]
    return tracker


def test_runs_of_the_same_folder_name_are_separate(package: FakeTrackerPackage, tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        tracker = started(package, tmp_path / name)
        tracker.on_metrics({"step": 1, "loss": 0.5})
        tracker.on_run_end()
        tracker.on_run_end()  # ending twice is allowed
    assert list(package.runs.values()) == [[("train/loss", 1, 0.5)]] * 2


def test_restarted_after_a_crash_it_continues(package: FakeTrackerPackage, tmp_path: Path) -> None:
    tracker = started(package, tmp_path / "run")
    tracker.on_run_start(SimpleNamespace(run=tmp_path / "run", first_step=1))  # type: ignore[arg-type]
    tracker.on_evaluation_metrics({"step": 2, "eval_loss": 0.5})
    assert list(package.runs.values()) == [[("eval/loss", 2, 0.5)]]


def test_a_failing_tracker_is_turned_off(package: FakeTrackerPackage, tmp_path: Path) -> None:
    package.fails, messages = True, list[str]()
    tracker = started(package, tmp_path / "run", messages.append)
    for step in (1, 2):
        tracker.on_metrics({"step": step, "loss": 0.5})
    tracker.on_run_end()
    assert messages == [f"{package.__name__} was turned off: the server is gone"]


def test_stdout_holds_only_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = install_fake("wandb", monkeypatch)
    from mlx_dpo.cli import main

    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path / "run", "--iters", 1, "--json")
    monkeypatch.setattr(sys, "argv", ["mlx-dpo", "train", *map(str, flags), "--report-to", "wandb"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and json.loads(out)["steps"] == 1 and "something on stdout" in err
    assert next(iter(package.runs.values()))


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (TRACKERS[name].package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"`report_to`: {name} is not installed\npip install {TRACKERS[name].package}"):
        create_trackers([name])


def test_names() -> None:
    assert create_trackers(None) == create_trackers([]) == create_trackers(["none"]) == []
    with pytest.raises(UserError, match=r"'wandbb' is not one of wandb, tensorboard, trackio, mlflow, none\n.*`wandb`"):
        create_trackers(["wandbb"])
    assert TrainConfig.from_mapping({"report_to": "wandb,mlflow"}).report_to == ["wandb", "mlflow"]
    assert with_split_prefix({"step": 3, "loss": 1.0, "eval_loss": 2.0}) == {"train/loss": 1.0, "eval/loss": 2.0}
