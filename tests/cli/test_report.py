"""mlx-dpo report, and what train says and writes of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.reporting.evaluation_records import REPORT_FOLDER
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, rows_of
from tests.reporting.conftest import record

Cli = Callable[..., CommandResult]
TRAIN = (
    "train",
    "--model",
    CHECKPOINT,
    "--data",
    PAIRS,
    "--valid-data",
    PAIRS,
    "--iters",
    4,
    "--learning-rate",
    "1e-3",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = rows_of(PAIRS)
    return record(tmp_path_factory.mktemp("runs") / "a", rows, rows, samples=2, iters=4, learning_rate=1e-3)


def test_report_writes_the_page_and_says_what_is_on_it(mlx_dpo: Cli, run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    ran = mlx_dpo("report", run)
    assert ran.code == 0, ran.err
    assert "reward margin" in ran.out and "After 4 steps" in ran.out
    assert (run / "report.html").exists()
    both = tmp_path / "both.html"
    assert mlx_dpo("report", run, run, "--output", both).code == 0
    assert both.read_text().count("class='verdict") == 2


def test_report_json(mlx_dpo: Cli, run: Path) -> None:
    told = json.loads(mlx_dpo("report", run, "--json").out)
    assert told["page"] == str(run / "report.html") and told["plots"] == []
    (one,) = told["runs"]
    changes = {change["name"]: change for change in one["held_out"]}
    margin = changes["rewards/margins"]
    assert margin["before"]["value"] == pytest.approx(0, abs=1e-5) and margin["after"]["count"] == 8
    assert margin["after"]["low"] < margin["after"]["value"] < margin["after"]["high"] and 0 < margin["p"] < 0.05
    assert {"kl/reference", "perplexity/chosen", "length", "logps/accuracies"} <= set(changes)
    assert one["diagnoses"] == [] and one["step"] == one["steps"] == 4


def test_report_pictures(mlx_dpo: Cli, run: Path) -> None:
    pytest.importorskip("matplotlib")
    told = json.loads(mlx_dpo("report", run, "--plots", "svg", "--json").out)
    assert str(run / "plots" / "loss.svg") in told["plots"] and all(Path(file).exists() for file in told["plots"])


def test_where_there_is_no_run(mlx_dpo: Cli, tmp_path: Path) -> None:
    ran = mlx_dpo("report", tmp_path)
    assert ran.code == 2 and "there is no run here" in ran.err and str(tmp_path) in ran.err
    ran = mlx_dpo("report", tmp_path, "--plots", "gif")
    assert ran.code == 2 and "'gif'" in ran.err


def test_train_quiet_says_only_what_looks_wrong(mlx_dpo: Cli, tmp_path: Path) -> None:
    quiet = (*TRAIN, "--samples", 0, "--quiet")
    ran = mlx_dpo(*quiet, "--adapter-path", tmp_path / "a")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    still = ("--iters", 20, "--learning-rate", "1e-9", "--batch-size", 2)
    ran = mlx_dpo(*quiet, *still, "--adapter-path", tmp_path / "b", "--json")
    assert ran.err.startswith("stalled loss at step 20: ") and "Raise --learning-rate" in ran.err
    assert [one["fault"] for one in json.loads(ran.out)["diagnoses"]] == ["standing_still"]


def test_a_live_report_is_there_while_it_trains(mlx_dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_dpo.reporting import html_report as page

    run, seen = tmp_path / "a", []
    write = page.write_report

    def spy(folder: Path, *, live: bool = False) -> Path:
        file = write(folder, live=live)
        seen.append("http-equiv=refresh" in file.read_text())
        return file

    monkeypatch.setattr(page, "write_report", spy)
    flags = ("--live-report", "--steps-per-report", 1, "--samples", 0, "--adapter-path", run)
    assert mlx_dpo(*TRAIN, *flags).code == 0
    assert len(seen) >= 6 and all(seen)  # at the start, at every report, at both evaluations
    assert "http-equiv=refresh" not in (run / "report.html").read_text()
    assert not list(run.glob(".*.partial")) and (run / REPORT_FOLDER).is_dir()
