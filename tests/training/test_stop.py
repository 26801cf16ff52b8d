"""Asked to stop, or failing, at any moment: what was trained is saved, and resuming ends with the same bytes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from mlx_dpo import Interrupted, UserError, train
from mlx_dpo.forward import token_logps
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.checkpoint import PROGRESS_FILE, read_progress
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.run_folder import RunFolder
from tests.training.test_run import adapter, config

SETTINGS = {"steps_per_eval": 3, "valid_pairs": 2, "save_every": 0}


class Begun(MetricsLog):
    """Notices that training begins."""

    has_begun = False

    def on_run_start(self, plan: RunPlan) -> None:
        super().on_run_start(plan)
        self.has_begun = True


class Failure(MetricsLog):
    """Fails when the evaluation after the last step is reported."""

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        super().on_evaluation_metrics(metrics)
        if metrics["step"] == 7:
            raise RuntimeError("in the last evaluation")


def steps_of(run: Path) -> list[tuple[float, bool]]:
    """(step, whether it is an evaluation) of each line of the metrics."""
    return [(line["step"], "eval_loss" in line) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config(run, **SETTINGS), listener=MetricsLog())
    return run


def test_a_failure_after_the_last_step_costs_no_step(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="in the last evaluation"):
        train(config(run, **SETTINGS), listener=Failure())
    assert adapter(run) == adapter(whole)
    result = train(config(run, **SETTINGS), listener=MetricsLog())
    assert adapter(run) == adapter(whole) and steps_of(run) == steps_of(whole)
    assert result.after and read_metrics(run)[-1]["eval_loss"] == read_metrics(whole)[-1]["eval_loss"]


@pytest.mark.parametrize("chunk", [0, 4, 9, 23])
def test_stopped_in_the_middle_of_a_step(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """The flag is set at some chunk of logits, of training or of an evaluation, and honoured before the next one."""
    run, stop, chunks, listener = tmp_path / "run", threading.Event(), list[int](), Begun()
    compute = token_logps._chunk

    def counted(*arguments: object) -> object:
        chunks.append(1)
        if not listener.has_begun:
            chunks.clear()
        if len(chunks) == chunk + 1:
            stop.set()
        assert len(chunks) <= chunk + 1, "it went on"
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(token_logps, "_chunk", counted)
    with pytest.raises(Interrupted):
        train(config(run, **SETTINGS), listener=listener, stop=stop)
    monkeypatch.undo()
    train(config(run, **SETTINGS), listener=MetricsLog())
    assert adapter(run) == adapter(whole)
    assert steps_of(run) == steps_of(whole)


class Killed(BaseException):
    """Ends the process, as far as a test in one process can."""


def test_killed_between_the_last_checkpoint_and_the_adapter(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = tmp_path / "run", RunFolder.save_adapter

    def killed_at_the_end(self: RunFolder, *arguments: object) -> None:
        if self.path == run and self.latest_checkpoint() == self.checkpoint(7):
            raise Killed
        save(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "save_adapter", killed_at_the_end)
    with pytest.raises(Killed):
        train(config(run, **SETTINGS), listener=MetricsLog())
    monkeypatch.undo()
    assert adapter(run) != adapter(whole), "it is that of an earlier step"
    train(config(run, **SETTINGS), listener=MetricsLog())
    assert adapter(run) == adapter(whole) and steps_of(run) == steps_of(whole)


@pytest.mark.parametrize(
    "settings", [SETTINGS, {**SETTINGS, "patience": 1, "learning_rate": 0.3}], ids=["", "patience"]
)
def test_a_run_is_finished_with_its_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    """Killed after any write of the progress, the run is finished, or has something left to do."""
    whole, run, update = tmp_path / "whole", tmp_path / "run", RunFolder.update_progress
    train(config(whole, **settings), listener=MetricsLog())

    def killed_after(self: RunFolder, *arguments: object) -> None:
        update(self, *arguments)  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(RunFolder, "update_progress", killed_after)
    for _ in range(5):
        with pytest.raises(Killed):
            train(config(run, **settings), listener=MetricsLog())
        if read_progress(RunFolder(run).require_latest_checkpoint()).finished:
            break
    assert read_progress(RunFolder(run).require_latest_checkpoint()).finished
    assert adapter(run) == adapter(whole) and steps_of(run) == steps_of(whole)
    with pytest.raises(UserError, match="holds a finished run"):
        train(config(run, **settings), listener=MetricsLog())


def test_a_run_that_an_earlier_version_left_with_nothing_to_do_is_finished(tmp_path: Path, whole: Path) -> None:
    """It wrote the last evaluation and the run's end one after the other, and could be killed in between."""
    run = tmp_path / "run"
    train(config(run, **SETTINGS), listener=MetricsLog())
    file = RunFolder(run).require_latest_checkpoint() / PROGRESS_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "finished": False}))
    result = train(config(run, **SETTINGS), listener=MetricsLog())
    assert result.after and adapter(run) == adapter(whole) and steps_of(run) == steps_of(whole)
