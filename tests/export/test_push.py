"""Pushing to a Hub over HTTP: what goes, and every way the Hub can fail, which ends in success or in one sentence."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import mlx_dpo.utils.hub_client
from mlx_dpo.errors import UserError
from mlx_dpo.export.push.hub_push import PushResult, push_folder
from tests.conftest import TRL
from tests.hub.server import READ, WRITE, Hub

REPO = "tester/mine"
SENT = ["README.md", "adapter_config.json", "adapters.safetensors"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An adapter's folder."""
    return Path(shutil.copytree(TRL / "adapter", tmp_path / "run"))


def push(run: Path, repo: str = REPO, **options: Any) -> PushResult:
    return push_folder(run, repo, **options)


def there(hub: Hub, repo: str = REPO, branch: str = "main") -> list[str]:
    """The files of the repository that are ours."""
    return sorted(set(hub.store.files("models", repo, branch)) - {".gitattributes"})


def commits(hub: Hub, repo: str = REPO) -> list[str]:
    return hub.store.titles("models", repo)


def is_whole(hub: Hub, run: Path) -> bool:
    """One commit with all of it."""
    same = hub.content(REPO, "adapters.safetensors") == (run / "adapters.safetensors").read_bytes()
    return same and there(hub) == SENT and commits(hub) == ["initial commit", "Upload with mlx-dpo"]


def is_untouched(hub: Hub) -> bool:
    """No commit of ours, whole or half."""
    return there(hub) == [] and commits(hub) in ([], ["initial commit"])


def test_push(hub: Hub, run: Path) -> None:
    done = push(run)
    assert is_whole(hub, run)
    assert (done.url, done.private, [f.path for f in done.files]) == (f"{hub.url}/{REPO}", True, SENT)
    assert hub.store.repo("models", REPO)["private"] is True
    assert done.commit == hub.store.resolve("models", REPO, "main")


def test_public(hub: Hub, run: Path) -> None:
    assert push(run, private=False).private is False
    assert hub.store.repo("models", REPO)["private"] is False


def test_pushing_again_sends_and_commits_nothing(hub: Hub, run: Path) -> None:
    first = push(run)
    puts = hub.count_requests("PUT", "/lfs/")
    assert push(run).commit == first.commit
    assert is_whole(hub, run) and hub.count_requests("PUT", "/lfs/") == puts


def test_a_public_repository_that_is_there_is_told_of(hub: Hub, run: Path) -> None:
    hub.store.create("models", REPO)
    messages: list[str] = []
    assert push(run, on_message=messages.append).private is False
    assert "public" in messages[0]


def test_a_card_of_ones_own_that_the_hub_refuses(hub: Hub, run: Path) -> None:
    (run / "README.md").write_text("---\nlicense: free\n---\n# Mine\n")
    with pytest.raises(UserError, match=r"refuses the request \(status 400\).*license. must be one of"):
        push(run)
    assert is_untouched(hub)


def test_a_branch(hub: Hub, run: Path) -> None:
    done = push(run, branch="two")
    assert there(hub) == [] and there(hub, branch="two") == SENT
    assert done.url.endswith("/tree/two")
    push(run, branch="two")


def big(run: Path, name: str, seed: int, megabytes: int = 3) -> None:
    save_file({"x": np.random.default_rng(seed).random(megabytes << 17)}, run / name)


def test_large_files_go_in_parts(hub: Hub, run: Path) -> None:
    big(run, "adapters.safetensors", 0)
    push(run)
    assert is_whole(hub, run) and hub.count_requests("PUT", r"/lfs/\w+/\d+$") == 4


# What fails, and then goes well: (method, path, how it fails)
PASSING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "429 on create": ("POST", "/api/repos/create", {"status": 429, "headers": {"Retry-After": "7"}}),
    "429 on preupload": ("POST", "/preupload/", {"status": 429, "headers": {"Retry-After": "7"}}),
    "429 in the upload": ("PUT", "/lfs/", {"status": 429, "headers": {"Retry-After": "7"}}),
    "429 on commit": ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "7"}}),
    "500 on create": ("POST", "/api/repos/create", {"status": 500}),
    "500 on preupload": ("POST", "/preupload/", {"status": 500, "times": 2}),
    "500 on the batch": ("POST", "/objects/batch", {"status": 500}),
    "500 in mid-upload": ("PUT", "/lfs/", {"status": 500, "skip": 1, "times": 2}),
    "500 on verify": ("POST", "/verify", {"status": 500}),
    "500 on commit": ("POST", "/commit/", {"status": 500, "times": 2}),
    "503 of a proxy, in HTML": ("POST", "/api/validate-yaml", {"status": 503, "body": "<html>no</html>"}),
    "409 on commit": ("POST", "/commit/", {"status": 409}),
    "412 on commit": ("POST", "/commit/", {"status": 412}),
    "409, another repository in the making": (
        *("POST", "/api/repos/create"),
        {"status": 409, "body": "Cannot create repo: another conflicting operation is in progress"},
    ),
    "cut on create": ("POST", "/api/repos/create", {"cut": "request"}),
    "cut on preupload": ("POST", "/preupload/", {"cut": "request", "times": 2}),
    "cut in mid-upload": ("PUT", "/lfs/", {"cut": "request", "skip": 1}),
    "cut in mid-commit": ("POST", "/commit/", {"cut": "request"}),
    "cut once committed, before the answer": ("POST", "/commit/", {"cut": "answer"}),
    "slow on create": ("POST", "/api/repos/create", {"delay": 2}),
    "slow in the upload": ("PUT", "/lfs/", {"delay": 2}),
    "slow on commit": ("POST", "/commit/", {"delay": 2}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_ends_in_one_whole_commit(name: str, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, path, options = PASSING[name]
    big(run, "adapters.safetensors", 0)
    if "slow" in name:
        monkeypatch.setattr(mlx_dpo.utils.hub_client, "REQUEST_TIMEOUT", 1.0)
    hub.inject_fault(method, path, **options)
    push(run)
    assert not any(fault.times for fault in hub.faults.faults), "the fault was not met"
    assert is_whole(hub, run)
    if "429" in name:
        assert any(wait >= 7 for wait in hub.waits)
    if name == "slow on commit":
        time.sleep(2.5)  # the try that was given up
        assert is_whole(hub, run)


# What stays, and what is said of it: (token, repository, faults, words of the sentence)
LASTING: dict[str, tuple[str | None, str, list[tuple[str, str, dict[str, Any]]], tuple[str, ...]]] = {
    "no token": (None, REPO, [], ("not logged in", "hf auth login", "HF_TOKEN")),
    "a token the Hub doesn't know": (
        "hf_OldOldOldOldOldOldOldOld",
        REPO,
        [],
        ("not accept your token", "hf auth login"),
    ),
    "a token that may only read": (READ, REPO, [], ("may not write", "write permission")),
    "somebody else's name": (WRITE, "other/mine", [], ("may not write", "of your own")),
    "not a name": (WRITE, "a/b/c", [], ("user/name",)),
    "403 on commit": (WRITE, REPO, [("POST", "/commit/", {"status": 403})], ("may not write", "on purpose")),
    "429 without end": (WRITE, REPO, [("POST", "/commit/", {"status": 429})], ("429", "Wait a few minutes")),
    "429 for an hour": (
        *(WRITE, REPO),
        [("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "3600"}})],
        ("429", "3600 s"),
    ),
    "500 on create": (WRITE, REPO, [("POST", "/repos/create", {"status": 500})], ("server error", "500")),
    "500 in mid-upload": (WRITE, REPO, [("PUT", "/lfs/", {"status": 500, "skip": 2})], ("server error", "500")),
    "500 on commit": (WRITE, REPO, [("POST", "/commit/", {"status": 500})], ("server error", "500")),
    "409 on commit": (WRITE, REPO, [("POST", "/commit/", {"status": 409})], ("somebody else is changing", "Try again")),
    "400 on commit": (
        WRITE,
        REPO,
        [("POST", "/commit/", {"status": 400})],
        ("refuses the request (status 400)", "on purpose"),
    ),
    "413 on commit": (WRITE, REPO, [("POST", "/commit/", {"status": 413})], ("refuses the request (status 413)",)),
    "cut in mid-upload": (WRITE, REPO, [("PUT", "/lfs/", {"cut": "request", "skip": 2})], ("can't be reached",)),
    "cut in mid-commit": (WRITE, REPO, [("POST", "/commit/", {"cut": "request"})], ("can't be reached",)),
    "slow": (WRITE, REPO, [("POST", "/preupload/", {"delay": 1})], ("does not answer",)),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_stays_is_one_sentence_and_no_commit(
    name: str, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, repo, faults, words = LASTING[name]
    big(run, "adapters.safetensors", 0)
    if name == "slow":
        monkeypatch.setattr(mlx_dpo.utils.hub_client, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setenv("HF_TOKEN", token or "")
    for method, path, options in faults:
        hub.inject_fault(method, path, **{"times": 1000, **options})
    with pytest.raises(UserError) as raised:
        push(run, repo)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert len(raised.value.message.splitlines()) == 1 and "Traceback" not in message
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert is_untouched(hub) and (token is None or token not in message)
    if not faults:
        return
    hub.faults.faults.clear()  # the Hub is well again: the same command goes on
    push(run)
    assert is_whole(hub, run)


def test_what_arrived_is_not_sent_again(hub: Hub, run: Path) -> None:
    (run / "checkpoints").mkdir()
    big(run / "checkpoints", "a.safetensors", 1)
    big(run / "checkpoints", "b.safetensors", 2)
    options: dict[str, Any] = {"include": ["checkpoints/*"]}
    hub.inject_fault("PUT", "/lfs/", status=500, skip=6, times=1000)
    with pytest.raises(UserError):
        push(run, **options)
    arrived = len(list((hub.store.root / "objects").glob("[0-9a-f]*"))) - 1  # .gitattributes
    assert is_untouched(hub) and arrived >= 1
    hub.faults.faults.clear()
    before = hub.count_requests("POST", "/verify")
    push(run, **options)
    assert hub.count_requests("POST", "/verify") - before == 3 - arrived
    assert there(hub) == sorted([*SENT, "checkpoints/a.safetensors", "checkpoints/b.safetensors"])


def test_nobody_there(hub: Hub, run: Path) -> None:
    hub.close()
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+ \(HF_ENDPOINT\) can't be reached"):
        push(run)


def test_a_storage_that_fails(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's newer storage, which huggingface_hub's compiled client speaks to; this server has none."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(UserError, match="404 Not Found") as raised:
        push(run)
    assert len(raised.value.message.splitlines()) == 1 and WRITE not in str(raised.value)
    assert hub.count_requests("GET", "xet-write-token") and is_untouched(hub)


def test_offline(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(run)
    assert not hub.requests


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_no_token_in_any_complaint(
    status: int, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither where the Hub says it back, nor where an address holds one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//somebody:secret@"))
    hub.inject_fault("POST", "/preupload/", status=status, times=1000, body=f'{{"error": "your token {WRITE} is bad"}}')
    with pytest.raises(UserError) as raised:
        push(run)
    log = capfd.readouterr().err
    assert "Retry 1/5" in log or status not in (429, 500)
    output = str(raised.value) + log
    assert WRITE not in output and "secret" not in output


def test_no_password_in_the_address(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//somebody:secret@"))
    assert push(run).url == f"{hub.url}/{REPO}"


def test_check_of_ready(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_dpo.export.push.hub_push import check_push_allowed, qualified_repo_id

    assert qualified_repo_id("mine") == REPO and qualified_repo_id("a/b") == "a/b"
    for name in ("a/b@main", "a/b:c", "/x", "a b/c", "../x", "a/.."):
        with pytest.raises(UserError, match="user/name"):
            check_push_allowed(name)
