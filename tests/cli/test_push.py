"""mlx-dpo push, and train's pushing: what is printed, what is sent, and that no failure costs the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.hub.server import READ, WRITE, Hub
from tests.marks import mostly_slow

Cli = Callable[..., CommandResult]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRL / "adapter", tmp_path / "run"))


def test_push_lists_and_prints_the_address(mlx_dpo: Cli, hub: Hub, run: Path) -> None:
    ran = mlx_dpo("push", run, "--repo-id", "tester/mine")
    assert ran.code == 0, ran.err
    assert ran.out == f"{hub.url}/tester/mine  (private)\n"
    assert "adapters.safetensors" in ran.err and "kB" in ran.err


def test_push_json(mlx_dpo: Cli, hub: Hub, run: Path) -> None:
    ran = mlx_dpo("push", run, "--repo-id", "mine", "--public", "--branch", "b", "--commit-message", "Try", "--json")
    told = json.loads(ran.out)
    assert (told["repo_id"], told["private"], told["url"]) == ("tester/mine", False, f"{hub.url}/tester/mine/tree/b")
    assert set(told["files"]) == {"README.md", "adapter_config.json", "adapters.safetensors"}
    assert hub.store.titles("models", "tester/mine", "b") == ["Try"]


@pytest.mark.parametrize("token", [WRITE, ""])
def test_dry_run_asks_nobody(mlx_dpo: Cli, hub: Hub, run: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    ran = mlx_dpo("push", run, "--repo-id", "tester/mine", "--dry-run", "--json")
    assert ran.code == 0 and set(json.loads(ran.out)["files"]) == {p.name for p in run.iterdir()} | {"README.md"}
    assert "private" in ran.err and not hub.requests


def test_mistakes_are_one_sentence(
    mlx_dpo: Cli, hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, said in (
        ((tmp_path, "--repo-id", "tester/mine"), "neither an adapter nor a model"),
        ((run, "--repo-id", "a b"), "user/name"),
        ((run, "--repo-id", "tester/mine", "--include", "x*"), "no file matches"),
    ):
        ran = mlx_dpo("push", *arguments)
        assert ran.code == 2 and said in ran.err and ran.out == "" and "Traceback" not in ran.err
    assert mlx_dpo("push", run).code == 2
    monkeypatch.setenv("HF_TOKEN", "")
    ran = mlx_dpo("push", run, "--repo-id", "mine")
    assert ran.code == 2 and "hf auth login" in ran.err and len(ran.err.splitlines()) == 2
    assert not hub.store.repo("models", "tester/mine")


def train(mlx_dpo: Cli, run: Path, *flags: object) -> CommandResult:
    given = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", run, "--iters", 4)
    return mlx_dpo("train", *given, "--save-every", 2, "--steps-per-report", 1, "--no-supervise", *flags)


def test_train_and_push(mlx_dpo: Cli, hub: Hub, tmp_path: Path) -> None:
    ran = train(mlx_dpo, tmp_path / "run", "--push-to-hub", "--hub-model-id", "tester/named", "--json", "--supervise")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["steps"] == 4 and told["pushed"]["url"] == f"{hub.url}/tester/named"
    there = set(hub.store.files("models", "tester/named"))
    assert there == {".gitattributes", "README.md", "adapter_config.json", "adapters.safetensors"} | {
        *("config.yaml", "curves.png", "lineage.json")
    }
    assert "hf download tester/named" in hub.content("tester/named", "README.md").decode()


def test_train_and_push_by_the_folders_name(mlx_dpo: Cli, hub: Hub, tmp_path: Path) -> None:
    ran = train(mlx_dpo, tmp_path / "polite", "--push-to-hub", "--no-hub-private-repo")
    assert ran.code == 0 and f"{hub.url}/tester/polite  (public)" in ran.out


def test_checkpoints_go_to_a_branch_and_can_be_resumed(mlx_dpo: Cli, hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    assert train(mlx_dpo, tmp_path / "run", "--push-checkpoints", "--supervise").code == 0
    titles = hub.store.titles("models", "tester/run", "checkpoints")
    assert titles and set(titles) <= {"Step 2", "Step 4"} and "Step 2" in titles
    assert set(hub.store.files("models", "tester/run")) == {".gitattributes"}  # main is for the end
    fetched = snapshot_download("tester/run", revision="checkpoints", local_dir=tmp_path / "fetched")
    ran = train(mlx_dpo, Path(fetched), "--resume-anyway", "--iters", 6)  # paths are not what they were there
    assert ran.code == 0 and "Resuming after step" in ran.err, ran.err


def test_of_checkpoints_that_wait_the_newest_goes(mlx_dpo: Cli, hub: Hub, tmp_path: Path) -> None:
    hub.inject_fault("POST", "/commit/checkpoints", delay=2)
    assert train(mlx_dpo, tmp_path / "run", "--push-checkpoints", "--save-every", 1, "--iters", 6).code == 0
    titles = hub.store.titles("models", "tester/run", "checkpoints")
    assert titles[-1] == "Step 6" and len(titles) < 6
    newest = hub.content("tester/run", "adapters.safetensors", "checkpoints")
    assert newest == (tmp_path / "run" / "adapters.safetensors").read_bytes()


@pytest.mark.parametrize("status", mostly_slow([403, 500, None], 3))
def test_a_failed_push_leaves_the_run_and_says_how_to_push_later(
    status: int | None, mlx_dpo: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    how: dict[str, Any] = {"status": status} if status else {"cut": "request"}
    hub.inject_fault("POST", "/preupload/", times=1000, **how)
    ran = train(mlx_dpo, run, "--push-to-hub", "--push-checkpoints", "--hub-model-id", "tester/mine")
    assert ran.code == 1 and "Traceback" not in ran.err
    assert "The checkpoint of step 2 could not be pushed to the Hub" in ran.err
    later = next(line for line in ran.err.splitlines() if line.startswith("Push it later: "))
    hub.faults.faults.clear()
    assert later == f"Push it later: mlx-dpo push {run} --repo-id tester/mine"
    assert mlx_dpo(*later.removeprefix("Push it later: mlx-dpo ").split()).code == 0
    assert hub.content("tester/mine", "adapters.safetensors") == (run / "adapters.safetensors").read_bytes()


def test_what_can_be_known_before_training_is_said_before(
    mlx_dpo: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = train(mlx_dpo, tmp_path / "run", "--push-to-hub", "--hub-model-id", "a/b/c")
    assert ran.code == 2 and "user/name" in ran.err
    monkeypatch.setenv("HF_TOKEN", "")
    ran = train(mlx_dpo, tmp_path / "run", "--push-checkpoints")
    assert ran.code == 2 and "hf auth login" in ran.err
    assert not (tmp_path / "run").exists()


def test_no_token_in_anything_a_run_leaves_or_says(
    mlx_dpo: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("HF_TOKEN", READ)
    ran = train(mlx_dpo, run, "--push-to-hub", "--push-checkpoints")
    assert ran.code == 1 and "may not write" in ran.err
    assert READ not in ran.err + ran.out
    for file in run.rglob("*"):
        assert not file.is_file() or READ.encode() not in file.read_bytes(), file
