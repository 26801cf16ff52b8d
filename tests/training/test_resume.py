"""Going on: what must be the same, who else is in the folder, which checkpoints stay, and when it is enough."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import Interrupted, UserError, train
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.checkpoint import read_progress, read_training_state
from mlx_dpo.training.run_folder import RunFolder
from tests.conftest import PAIRS, rows_of, write_rows
from tests.training.test_run import StopAfter, adapter, config


class Notes(MetricsLog):
    """Keeps what is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def stopped(run: Path, after: int = 3, **knobs: Any) -> None:
    """A run that was asked to stop."""
    listener = StopAfter(after)
    with pytest.raises(Interrupted):
        train(config(run, **knobs), listener=listener, stop=listener.stop)


def test_the_same_command_goes_on_and_says_so(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole))
    stopped(run)
    listener = Notes()
    train(config(run), listener=listener)
    assert adapter(run) == adapter(whole)
    assert any("resuming" in note.lower() and "after step 3" in note for note in listener.notes)
    with pytest.raises(UserError, match="finished run"):
        train(config(run))


def test_what_changed_is_named(tmp_path: Path) -> None:
    run, data = tmp_path / "run", write_rows(tmp_path / "pairs.jsonl", rows_of(PAIRS))
    stopped(run, data=str(data))
    for knobs, says in (
        ({"beta": 0.3}, "beta was 0.1 and is 0.3"),
        ({"learning_rate": 2e-3, "rank": 4}, "rank was 8 and is 4; .*learning_rate was 0.001 and is 0.002"),
        ({"seed": 7}, "seed was 0 and is 7"),
    ):
        for resume in (True, False):
            with pytest.raises(UserError, match=f"(?s)0000003: .*{says}.*--resume-anyway"):
                train(config(run, **{"data": str(data), **knobs}), resume=resume)
    write_rows(data, rows_of(PAIRS)[::-1])
    with pytest.raises(UserError, match="the rows to train on changed"):
        train(config(run, data=str(data)), resume=True)
    train(config(run, data=str(data), beta=0.3), resume_anyway=True)


def test_knobs_that_change_no_number_may_change(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole))
    stopped(run)
    train(config(run, steps_per_report=1, save_every=1, memory_limit="4GB", keep_checkpoints=1), resume=True)
    for one, other in zip(*(map(np.array, tensors(folder)) for folder in (run, whole)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def tensors(run: Path) -> list[Any]:
    return [value for _, value in sorted(mx.load(str(run / "adapters.safetensors")).items())]


def test_another_model_is_named(tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "run"
    stopped(run, model=str(checkpoint))
    weights = mx.load(str(checkpoint / "model.safetensors"))
    name = next(iter(weights))
    mx.save_safetensors(str(checkpoint / "model.safetensors"), {**weights, name: weights[name] + 1e-3})
    with pytest.raises(UserError, match="the model, or the adapter it starts from changed"):
        train(config(run, model=str(checkpoint)), resume=True)


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import sys
from mlx_dpo.training.run_folder import RunFolder
folder = RunFolder({str(run)!r})
folder.lock()
print("locked", flush=True)
sys.stdin.read()
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"another run is being written here, by process {holder.pid}"):
        train(config(run))
    holder.communicate("")
    train(config(run))
    assert not (run / ".lock").exists()


def test_the_last_checkpoints_stay_and_the_best(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A rate that soon makes it worse: the best is early.
    knobs = {"save_every": 1, "steps_per_eval": 1, "keep_best": True, "learning_rate": 0.3, "keep_checkpoints": 2}
    train(config(run, **knobs), listener=MetricsLog())
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line}
    best = json.loads((run / "best.json").read_text())
    assert best["loss"] == min(losses.values()) == losses[best["step"]]
    assert 0 < best["step"] < 6
    kept = [folder.name for folder in RunFolder(run).checkpoints()]
    assert kept == [f"{best['step']:07d}", "0000006", "0000007"]
    measured = train(
        config(tmp_path / "again", init_adapter=str(run / best["folder"]), reference="base", iters=1)
    ).before
    assert measured["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_patience_ends_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    knobs = {"steps_per_eval": 1, "patience": 2, "learning_rate": 0.3, "iters": 60, "lr_schedule": "constant"}
    listener = Notes()
    result = train(config(run, **knobs), listener=listener)
    losses = [line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line]
    assert len(losses) < 40 and min(losses) == losses[-3] and result.after["loss"] == losses[-1]
    assert any("stopped early" in note for note in listener.notes)
    assert read_progress(RunFolder(run).require_latest_checkpoint()).finished
    with pytest.raises(UserError, match="has done all"):
        train(config(run, **knobs), resume=True)
    for knob in ({"patience": 1}, {"keep_best": True}):
        with pytest.raises(UserError, match="no examples are held out"):
            train(config(tmp_path / "none", valid_data=None, valid_pairs=0, **knob))


def test_a_checkpoint_is_enough_to_go_on(tmp_path: Path) -> None:
    """Though all else of the run's folder is gone."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole))
    stopped(run)
    checkpoint = RunFolder(run).require_latest_checkpoint()
    moved = tmp_path / "moved" / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, moved)
    flags = ("--resume", "--adapter-path", str(tmp_path / "moved"))
    subprocess.run([sys.executable, "-m", "mlx_dpo", "train", *flags], check=True, capture_output=True)
    assert adapter(tmp_path / "moved") == adapter(whole)


def test_pending_metrics_of_a_version_with_fewer_metrics_are_dropped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped(run, steps_per_report=10)
    progress_file = RunFolder(run).require_latest_checkpoint() / "progress.json"
    content = json.loads(progress_file.read_text())
    assert content["pending"]
    content["pending"] = [row[:-1] for row in content["pending"]]
    progress_file.write_text(json.dumps(content))
    train(config(run, steps_per_report=10), listener=MetricsLog(), resume=True)
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [7]


def test_the_checkpoint_of_a_run_with_all_in_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped(run, loss="kto")
    exact = read_training_state(RunFolder(run).require_latest_checkpoint())
    assert exact.progress.step == 3 and not exact.progress.finished
    assert set(exact.progress.provenance) >= {"mlx", "mlx-lm", "mlx-dpo", "the rows to train on", "the held-out rows"}
