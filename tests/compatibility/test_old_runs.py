"""Run folders and JSON outputs of an earlier version (commit 71022aa, see make_runs.py) against the code as it is."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from mlx_dpo import demo
from mlx_dpo.cli import main
from tests.compatibility.make_runs import HERE, REPORTS, RESUME, lines_of, machine, prepare

Command = Callable[..., str]
RUNS = HERE / "runs"
RESULTS = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
# Seconds, memory, sizes of files with text in them, and where this process has its files.
VARYING = ("seconds", "memory", "modified", "files", "pairs_per_second", "tokens_per_second", "peak_memory_gb")
# Keys of JSON that earlier versions did not have.
ADDED = ("warnings", "known_models", "estimated_models", "outputs_written", "lineage", "verdicts")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the bundled model, its pairs and the old runs under the paths that they had."""
    prepare(tmp_path, Path(demo.__file__).parent)
    for run in ("finished", "fuse-bits", "interrupted"):
        shutil.copytree(RUNS / run, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; what it printed to stdout comes back, or to stderr where it is to fail."""

    def run(*arguments: object, exit_code: int = 0) -> str:
        unsupervised = ["--no-supervise"] if arguments[0] == "train" else []
        monkeypatch.setattr(sys, "argv", ["mlx-dpo", *map(str, arguments), *unsupervised])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == exit_code, err
        return err if exit_code else out

    return run


@pytest.fixture(scope="session")
def same_machine() -> bool:
    """Whether versions, device and what mlx computes, to the bit, are those of where the runs were made."""
    return machine(Path(demo.__file__).parent / "model") == RESULTS["machine"]


def assert_same_adapter(file: Path, expected: Path) -> None:
    """The same tensors up to float32 rounding, which Adam magnifies where a gradient is almost zero."""
    tensors, expected_tensors = load_file(file), load_file(expected)
    assert tensors.keys() == expected_tensors.keys()
    for kind in ("lora_a", "lora_b"):
        actual, wanted = (
            np.concatenate([values.ravel() for name, values in sorted(adapter.items()) if name.endswith(kind)])
            for adapter in (tensors, expected_tensors)
        )
        assert np.linalg.norm(actual - wanted) < 0.01 * np.linalg.norm(wanted), kind


def assert_same_json(actual: Any, expected: Any, where: str = "", *, texts: bool = False) -> None:
    """The same keys in the same order, the same types, and numbers to 1e-3; texts where asked for."""
    if isinstance(expected, dict):
        assert [key for key in actual if key not in ADDED] == list(expected), where
        for key, value in expected.items():
            if key in VARYING:
                assert type(actual[key]) is type(value), f"{where}.{key}"
            else:
                assert_same_json(actual[key], value, f"{where}.{key}", texts=texts)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for number, (item, expected_item) in enumerate(zip(actual, expected, strict=True)):
            assert_same_json(item, expected_item, f"{where}[{number}]", texts=texts)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4), where
    elif isinstance(expected, str) and not texts:
        assert isinstance(actual, str), where
    else:
        assert actual == expected, where


def assert_same_keys(actual: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, dict):
        assert [key for key in actual if key not in ADDED] == list(expected), where
        for key in expected:
            assert_same_keys(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        for number, (item, expected_item) in enumerate(zip(actual, expected, strict=False)):
            assert_same_keys(item, expected_item, f"{where}[{number}]")


def test_an_interrupted_run_resumes_to_the_same_adapter(command: Command, folder: Path, same_machine: bool) -> None:
    """Dropout, shuffling, optimizer, the loss's running value and the best checkpoint all come from the old files."""
    command(*RESUME, *([] if same_machine else ["--resume-anyway"]))
    assert_same_adapter(folder / "interrupted" / "adapters.safetensors", RUNS / "resumed.safetensors")
    metrics = lines_of(folder / "interrupted" / "metrics.jsonl")
    assert_same_json(metrics, RESULTS["resumed metrics"], "metrics.jsonl")
    assert json.loads((folder / "interrupted" / "best.json").read_text())["step"] == 10


def test_a_config_file_repeats_its_run_and_writes_the_same_files(command: Command, folder: Path) -> None:
    """The same adapter, and files of the same names with the same keys inside."""
    command("train", "-c", "finished/config.yaml", "--adapter-path", "again", "--samples", 2)
    again, finished = folder / "again", folder / "finished"
    assert_same_adapter(again / "adapters.safetensors", finished / "adapters.safetensors")
    written, old = ({str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} for run in (again, finished))
    assert written - {"curves.png"} == old | {"report.html", "lineage.json"}
    config, repeated = (yaml.safe_load((run / "config.yaml").read_text()) for run in (finished, again))
    assert {key: repeated[key] for key in config} == {**config, "adapter_path": "again"}
    assert (again / "adapter_config.json").read_text() == (finished / "adapter_config.json").read_text()
    for file in ("report/about.json", "report/pairs.json", "training.json", "checkpoints/0000004/progress.json"):
        actual, wanted = (json.loads((run / file).read_text()) for run in (again, finished))
        if file == "training.json":  # settings that were added since
            actual["config"] = {key: actual["config"][key] for key in wanted["config"]}
        if file.endswith("progress.json"):
            assert actual.pop("evaluated") == 4
        assert_same_keys(actual, wanted, file)
    for file in ("metrics.jsonl", "report/evaluations.jsonl", "report/samples.jsonl"):
        assert_same_keys(lines_of(again / file), lines_of(finished / file), file)
    for file in ("optimizer.safetensors", "references.safetensors"):
        tensors = [load_file(run / "checkpoints" / "0000004" / file) for run in (again, finished)]
        shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in by_name.items()} for by_name in tensors]
        assert shapes[0] == shapes[1], file


def test_a_finished_run_is_not_trained_again(command: Command, folder: Path) -> None:
    again = ("train", "-c", "finished/config.yaml", "--adapter-path", "finished")
    assert "finished run" in command(*again, exit_code=2)


@pytest.mark.parametrize("name", REPORTS)
def test_commands_read_old_runs_and_keep_their_json(
    command: Command, folder: Path, name: str, same_machine: bool
) -> None:
    if name == "push":
        pytest.importorskip("matplotlib")  # it draws the card's curves
    if name == "cache":
        command(*REPORTS["evaluate"])
    output = json.loads(command(*REPORTS[name], "--json"))
    if name == "export":
        output["bytes"] -= (folder / "peft" / "lineage.json").stat().st_size  # earlier versions wrote none
    same = assert_same_keys if name == "cache" else assert_same_json  # how large the cache is, is its own affair
    same(output, RESULTS["outputs"][name], name)
    if name == "score":
        assert_same_json(lines_of(folder / "scores.jsonl"), RESULTS["scores"], "scores.jsonl", texts=same_machine)
