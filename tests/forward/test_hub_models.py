"""Models from a Hub over HTTP, by name and revision, and every way that can fail, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from huggingface_hub import constants

import mlx_dpo.utils.hub_client
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import find_model_folder, load_model, load_tokenizer
from tests.cli.conftest import CommandResult
from tests.cli.conftest import mlx_dpo as cli  # noqa: F401
from tests.conftest import CHECKPOINT, PAIRS, rows_of
from tests.hub.server import Hub

NAME = "me/tiny"


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}


def put(hub: Hub, **how: Any) -> None:
    hub.store.create("models", NAME, **how)
    hub.store.commit("models", NAME, "main", "model", {**files(), "pytorch_model.bin": b"x", "train.log": b"x"})


def test_a_model(hub: Hub) -> None:
    put(hub)
    loaded, tokenizer = load_model(NAME), load_tokenizer(NAME)
    ids = mx.array([tokenizer.encode("Name three colours.")])
    assert mx.array_equal(loaded.model(ids), load_model(str(CHECKPOINT)).model(ids))
    assert hub.count_requests("GET", r"resolve.*(\.bin|\.log)$") == 0


def test_a_revision(hub: Hub) -> None:
    put(hub)
    hub.store.branch("models", NAME, "v2")
    config = json.loads(files()["config.json"]) | {"marked": 2}
    commit = hub.store.commit("models", NAME, "v2", "two", {"config.json": json.dumps(config).encode()})
    assert "marked" not in load_model(NAME).config
    assert load_model(f"{NAME}@v2").config["marked"] == load_model(f"{NAME}@{commit}").config["marked"] == 2


def test_offline_it_is_what_was_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub)
    folder = find_model_folder(NAME)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model_folder(NAME) == folder and len(hub.requests) == asked
    for name in ("me/other", f"{NAME}@v2"):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
            find_model_folder(name)


FAILING: dict[str, tuple[str, list[tuple[str, str, dict[str, Any]]], str]] = {
    "missing": ("me/nothing", [], "no such folder, and .* has no repository of this name, or it is private"),
    "no revision": (f"{NAME}@v9", [], "no such folder, and it has no revision `v9`"),
    "a part": (f"{NAME}:train", [], "not a Hub id"),
    "500": (NAME, [("GET", "/api/models/", {"status": 500})], "server error"),
    "500 on a file": (NAME, [("GET", "model.safetensors", {"status": 500})], "server error"),
    "429 on a file": (NAME, [("GET", "model.safetensors", {"status": 429})], "429"),
    "cut": (NAME, [("GET", "/api/models/", {"cut": "request"})], "can't be reached"),
    "slow": (NAME, [("GET", "/api/models/", {"delay": 1})], "does not answer"),
}


@pytest.mark.parametrize("name", FAILING)
def test_failures(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model, faults, said = FAILING[name]
    put(hub)
    if name == "slow":
        monkeypatch.setattr(mlx_dpo.utils.hub_client, "REQUEST_TIMEOUT", 0.5)
    for method, path, how in faults:
        hub.inject_fault(method, path, times=1000, **how)
    with pytest.raises(UserError, match=said) as raised:
        find_model_folder(model)
    assert len(raised.value.message.splitlines()) == 1
    hub.faults.faults.clear()
    assert load_model(NAME)  # no half of a download is taken for the whole


def test_what_passes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub)
    hub.inject_fault("GET", "model.safetensors", cut="answer", times=2)
    hub.inject_fault("GET", "/tree/", status=429, headers={"Retry-After": "2"})
    hub.inject_fault("HEAD", "config.json", status=500)
    assert load_model(NAME)
    assert hub.count_requests("GET", "model.safetensors") == 3 and 3 in hub.waits


@pytest.mark.parametrize(("how", "said"), [({"private": True}, "or it is private"), ({"gated": True}, "gated")])
def test_private_and_gated(how: dict[str, bool], said: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, **how)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=said) as raised:
        find_model_folder(NAME)
    assert "hf auth login" in str(raised.value)


def test_a_token_that_is_old(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_OldOldOldOldOldOldOldOld")
    with pytest.raises(UserError, match=r"does not accept your token(?s:.*)hf auth login"):
        find_model_folder(NAME)


def test_a_disk_that_is_full(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub)
    from huggingface_hub import file_download

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(UserError, match=r"me/tiny: .*No space left on device$"):
        find_model_folder(NAME)


@pytest.mark.parametrize("file", ["../../../evil.json", "/tmp/evil.json", "a/../../../../evil.json"])
def test_names_that_leave_their_folder(file: str, hub: Hub, tmp_path: Path) -> None:
    put(hub)
    hub.store.commit("models", NAME, "main", "evil", {file: b"{}"})
    with pytest.raises(UserError) as raised:
        find_model_folder(NAME)
    assert "Traceback" not in str(raised.value)
    assert not list(Path(constants.HF_HUB_CACHE).parent.rglob("evil.json")) and not Path("/tmp/evil.json").exists()


@pytest.mark.slow
def test_train_with_all_of_it_from_the_hub(hub: Hub, cli: Callable[..., CommandResult], tmp_path: Path) -> None:  # noqa: F811
    put(hub)
    rows = [{"ask": row["prompt"], "best": row["chosen"], "worst": row["rejected"]} for row in rows_of(PAIRS)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    hub.store.create("datasets", "me/prefs")
    hub.store.commit("datasets", "me/prefs", "main", "d", {"train.jsonl": content, "valid.jsonl": content})
    columns = ("--prompt-column", "ask", "--chosen-column", "best", "--rejected-column", "worst")
    data = ("--model", f"{NAME}@main", "--data", "me/prefs", *columns)
    here_only = "--no-supervise"  # a process less; the first run has it
    ran = cli("train", *data, "--adapter-path", tmp_path / "run", "--iters", 3, "--learning-rate", "1e-3", "--json")
    assert ran.code == 0, ran.err
    here = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", tmp_path / "here")
    other = cli("train", *here, here_only, "--iters", 3, "--learning-rate", "1e-3", "--json")
    assert json.loads(ran.out)["after"] == json.loads(other.out)["after"]
    assert (
        "--model me/tiny --adapter-path"
        in cli("train", *data, here_only, "--adapter-path", tmp_path / "x", "--iters", 1).out
    )
    ran = cli("evaluate", *data, "--adapter-path", tmp_path / "run", "--json")
    assert ran.code == 0 and json.loads(ran.out)["pairs"] == 8
    head = (tmp_path / "run" / "README.md").read_text().split("---")[1]
    assert "base_model: me/tiny\n" in head and "- me/prefs\n" in head
    ran = cli("train", *data[:4], here_only, "--adapter-path", tmp_path / "other")
    assert ran.code == 2 and "me/prefs:1" in ran.err
