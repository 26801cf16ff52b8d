"""Full disks, rows that can't be read, numbers that are none: what is said, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_dpo import UserError, train
from mlx_dpo.errors import Diverged
from mlx_dpo.forward.network import ForwardTrace
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.reporting.run_recorder import RunRecorder
from mlx_dpo.training import run_folder
from mlx_dpo.training.checkpoint import read_training_state
from mlx_dpo.training.listener import Listeners
from mlx_dpo.training.non_finite import MAX_CONSECUTIVE_SKIPS
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer
from tests.conftest import PAIRS, rows_of, write_rows
from tests.marks import mostly_slow
from tests.training.test_resume import Notes
from tests.training.test_run import config


class Talk(MetricsLog):
    """Keeps notes, those of the log itself too, and does something at a step."""

    def __init__(self, at: dict[int, Any] | None = None) -> None:
        super().__init__(self.on_note)
        self.notes: list[str] = []
        self.at = at or {}

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_step(self, step: int, metrics: Any) -> None:
        if step in self.at:
            self.at[step]()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system; test_any_write_may_fail covers what it does")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no room."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def assert_all_load(run: Path) -> None:
    """Every file that a reader may find is whole."""
    for folder in RunFolder(run).checkpoints():
        read_training_state(folder)
    for file in run.rglob("*.safetensors"):
        if file.name != "references.safetensors":  # float64, which is read with its checkpoint
            mx.eval(mx.load(str(file)))
    assert not list(run.rglob("*partial*"))


def test_a_full_disk_costs_no_more_than_it_must(disk: Path) -> None:
    """The disk fills after the first checkpoint, and is freed later: said once, tried again, nothing damaged."""
    run, before = disk / "run", {}

    def full() -> None:
        before.update({p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"})
        fill(disk)

    def freed() -> None:
        for path, content in before.items():
            if path.name != "metrics.jsonl":
                assert path.read_bytes() == content, path
        assert_all_load(run)
        (disk / "ballast").unlink()

    listener = Talk({3: full, 5: freed})
    knobs = {"save_every": 2, "steps_per_report": 1, "keep_checkpoints": 1, "rank": 4, "iters": 8, "steps_per_eval": 2}
    train(config(run, **knobs), listener=listener)
    assert sum("could not be saved: No space left" in note or "Unable to write" in note for note in listener.notes) == 1
    assert RunFolder(run).require_latest_checkpoint().name == "0000008"
    assert_all_load(run)
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 9))


def test_a_report_that_cant_be_written_is_written_later(disk: Path) -> None:
    """The disk is full in the evaluation at step 4, and again free in that at step 6."""
    whole, run, notes = disk.parent / "whole", disk / "run", Talk()
    listener = Talk({4: lambda: fill(disk), 5: lambda: (disk / "ballast").unlink()})
    knobs = {"steps_per_eval": 2, "save_every": 0, "iters": 7}
    train(config(whole, **knobs), listener=RunRecorder(notes.on_note, num_samples=2))
    train(config(run, **knobs), listener=Listeners(RunRecorder(notes.on_note, num_samples=2), listener))
    assert sum("report can't be written: No space left" in note for note in notes.notes) == 1
    for name in ("evaluations.jsonl", "samples.jsonl", "pairs.json"):
        assert (run / "report" / name).read_bytes() == (whole / "report" / name).read_bytes()


def test_a_report_folder_that_cant_be_made_costs_the_report_only(tmp_path: Path) -> None:
    notes = Talk()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report").write_text("a file")
    train(config(tmp_path / "run"), listener=RunRecorder(notes.on_note, num_samples=0))
    assert sum("report can't be written" in note for note in notes.notes) == 1


def test_metrics_that_cant_be_written_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, append = tmp_path / "run", run_folder.append_line
    listener = Talk({2: lambda: monkeypatch.setattr(run_folder, "append_line", full), 5: monkeypatch.undo})

    def full(file: Path, line: str) -> None:
        raise OSError(28, "No space left on device")

    train(config(run, steps_per_report=1), listener=listener)
    assert run_folder.append_line is append
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 8))
    told = [note for note in listener.notes if "metrics.jsonl can't be written: No space left" in note]
    assert len(told) == 1


def test_a_line_is_added_whole_or_not_at_all(disk: Path) -> None:
    file = disk / "lines"
    fill(disk)
    with (disk / "ballast").open("r+b") as ballast:
        ballast.truncate((disk / "ballast").stat().st_size - 8192)
    run_folder.append_line(file, "first")
    with pytest.raises(OSError, match="No space"):
        run_folder.append_line(file, "x" * 100_000)
    assert file.read_text() == "first\n"


def test_a_disk_that_stays_full(disk: Path) -> None:
    run = disk / "run"
    listener = Talk({3: lambda: fill(disk)})
    with pytest.raises(UserError, match=r"(?s)step 7 could not be saved: .*the last checkpoint is .*0000002.*--resume"):
        train(config(run, save_every=2, rank=4), listener=listener)
    assert_all_load(run)
    (disk / "ballast").unlink()
    train(config(run, save_every=2, rank=4), resume=True, listener=MetricsLog())
    whole = disk.parent / "whole"
    train(config(whole, save_every=2, rank=4))
    assert (run / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()


@pytest.mark.parametrize("room", [0, 8, 40, 100, 160])
def test_a_disk_that_is_full_from_the_start(disk: Path, room: int) -> None:
    """Wherever the room ends, it is one sentence, and what is there loads."""
    fill(disk)
    with (disk / "ballast").open("r+b") as file:
        file.truncate((disk / "ballast").stat().st_size - room * 1024)
    with pytest.raises(UserError, match=r"can't be written|could not be saved|not enough disk space for a checkpoint"):
        train(config(disk / "run", save_every=2, rank=4), listener=Talk())
    if (disk / "run").exists():
        assert_all_load(disk / "run")


def test_the_last_save_keeps_the_adapter_where_the_optimizers_state_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    train(config(tmp_path / "whole"))
    monkeypatch.setattr(run_folder, "write_training_state", full)
    with pytest.raises(UserError, match=r"step 7 could not be saved: .*; the adapter of this step is saved"):
        train(config(tmp_path / "run"))
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))  # type: ignore[attr-defined]


def test_room_for_checkpoints_is_checked_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"save_every": 2, "steps_per_eval": 0, "keep_checkpoints": 2}
    whole = tmp_path / "whole"
    train(config(whole, **settings))
    checkpoint = sum(file.stat().st_size for file in (whole / "checkpoints" / "0000006").glob("*.safetensors"))
    adapter = (whole / "adapters.safetensors").stat().st_size
    for free, expected in ((0.9, None), (1.1, 1), (2.5, 1), (3.1, 0)):  # in checkpoints, and how many notes there are
        listener, run = Talk(), tmp_path / str(free)
        free_bytes(monkeypatch, free * checkpoint + adapter)
        if expected is None:
            with pytest.raises(UserError, match=r"not enough disk space for a checkpoint: it takes .* are free"):
                train(config(run, **settings), listener=listener)
            assert not read_metrics(run)
        else:
            train(config(run, **settings), listener=listener)
            assert sum("checkpoints will take" in note for note in listener.notes) == expected


@pytest.mark.parametrize("failing", mostly_slow(range(12), 4))
def test_any_write_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The n-th file that is put in its place is not: the run goes on, and ends as if nothing had been."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole, save_every=2))
    replace, count = os.replace, 0

    def failing_replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == failing + 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(Path, "replace", lambda self, target: failing_replace(self, target))
    try:
        train(config(run, save_every=2), listener=Talk())
    except UserError as error:  # the very last one
        assert "could not be saved" in str(error)
        monkeypatch.undo()
        train(config(run, save_every=2), resume=True)
    assert_all_load(run)
    assert (run / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()


def test_a_folder_that_disappears_is_made_again(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole, save_every=2))
    train(config(run, save_every=2), listener=Talk({3: lambda: shutil.rmtree(run)}))
    assert (run / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()
    assert_all_load(run)
    assert (run / "config.yaml").exists() and (run / "checkpoints" / "0000006" / "config.yaml").exists()


def broken_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The gradient is no number at these steps, counted from 1."""
    step, count = Trainer.step, 0

    def counted(self: Trainer, batch: Any) -> None:
        nonlocal count
        count += 1
        step(self, batch)

    gradient = ForwardTrace.gradient

    def broken(self: ForwardTrace, *arguments: Any, **named: Any) -> Any:
        found = gradient(self, *arguments, **named)
        if count in steps:
            return tree_map(lambda g: g * float("nan"), found)
        return found

    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setattr(ForwardTrace, "gradient", broken)


def test_a_step_without_numbers_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    broken_at(monkeypatch, {2, 5})
    listener = Talk()
    train(config(run, steps_per_report=1, optimizer="sgd", learning_rate=0.1), listener=listener)
    named = [note for note in listener.notes if "is not a finite number" in note]
    assert [note.split(":")[0] for note in named] == ["step 2", "step 5"]
    assert f"{PAIRS}:" in named[0] and "not_finite.jsonl" in named[0]
    lines = [json.loads(line) for line in (run / "not_finite.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {2, 5} and all(line["completions"] for line in lines)
    reports = [line for line in read_metrics(run) if "loss" in line]
    assert [line["step"] for line in reports] == [1, 3, 4, 6, 7]
    assert [line.get("skipped_steps") for line in reports] == [None, 1, 1, 2, 2]
    assert all(np.isfinite(np.array(value)).all() for value in mx.load(str(run / "adapters.safetensors")).values())


def test_ten_in_a_row_end_the_run_at_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    broken_at(monkeypatch, set(range(4, 99)))
    with pytest.raises(Diverged, match=rf"(?s)the last {MAX_CONSECUTIVE_SKIPS} steps .*0000002.*--learning-rate"):
        train(config(run, iters=40, save_every=2), listener=Talk())
    assert [folder.name for folder in RunFolder(run).checkpoints()] == ["0000002"]
    assert_all_load(run)


def test_an_infinite_learning_curve_is_seen(tmp_path: Path) -> None:
    """With a rate beyond reason the numbers go for real."""
    knobs = {"learning_rate": 1e30, "optimizer": "sgd", "max_grad_norm": 0.0, "iters": 40, "lr_schedule": "constant"}
    with pytest.raises(Diverged, match="--learning-rate"):
        train(config(tmp_path / "run", warmup=0, **knobs), listener=Talk())


def test_bad_rows_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = rows_of(PAIRS)
    refused = {"prompt": [{"role": "user", "content": "q"}], "chosen": [], "rejected": "x"}
    file = write_rows(tmp_path / "pairs.jsonl", [rows[0], refused, *rows[1:]])
    with file.open("a") as f:
        f.write("{not json\n")
    good = write_rows(tmp_path / "good.jsonl", rows)
    with pytest.raises(UserError, match=r"pairs.jsonl:2(?s:.*)--bad-rows skip leaves such rows out"):
        train(config(tmp_path / "run", data=str(file)))
    assert not (tmp_path / "run").exists()
    listener = Notes()
    train(config(tmp_path / "run", data=str(file), bad_rows="skip"), listener=listener)
    train(config(tmp_path / "other", data=str(good)))
    one, other = ((tmp_path / run / "adapters.safetensors").read_bytes() for run in ("run", "other"))
    assert one == other
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [(str(file), 2), (str(file), 10)]
    assert any("2 rows were left out" in note for note in listener.notes)


def test_warnings_about_rows_are_printed_before_a_run(tmp_path: Path) -> None:
    rows = [{**row, "source": "web"} for row in rows_of(PAIRS)]
    same = {"prompt": "q", "chosen": "A.", "rejected": "A."}
    listener = Notes()
    file = write_rows(tmp_path / "pairs.jsonl", [*rows, same])
    train(config(tmp_path / "run", data=str(file)), listener=listener)
    notes = [note for note in listener.notes if note.startswith(f"{file}: ")]
    assert any("8 rows: text columns are not used: source (first lines: 1, 2" in note for note in notes)
    assert any("1 row: chosen and rejected are equal (first lines: 9)" in note for note in notes)
    in_memory = Notes()
    train(config(tmp_path / "other"), rows=[*rows, same], listener=in_memory)
    assert any(note.startswith("rows: 8 rows: text columns are not used: source") for note in in_memory.notes)


def test_rows_that_the_template_refuses(tmp_path: Path, checkpoint: Path) -> None:
    """They are found before the model is loaded, wherever they stand."""
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not this one') }}{% endif %}"
        + settings["chat_template"]
    )
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = [*rows_of(PAIRS), {"prompt": "no", "chosen": "a", "rejected": "b"}]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=r"pairs.jsonl:9: the model's chat template refuses this row: not this one"):
        train(config(tmp_path / "run", model=str(checkpoint), data=str(file)))
    train(config(tmp_path / "run", model=str(checkpoint), data=str(file), bad_rows="skip"))
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "template"
