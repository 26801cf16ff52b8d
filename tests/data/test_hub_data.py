"""Data sets from a Hub over HTTP: what is fetched, what is read, and every way that can fail, in one sentence."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

import mlx_dpo.utils.hub_client
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.files.hub_datasets import parse_hub_name
from mlx_dpo.data.files.row_files import find_data_files
from mlx_dpo.errors import UserError, Where
from tests.cli.conftest import CommandResult
from tests.cli.conftest import mlx_dpo as mlx_dpo_cli  # noqa: F401
from tests.conftest import CHECKPOINT
from tests.hub.server import Hub

NAME = "me/prefs"


def row(i: int) -> dict[str, Any]:
    return {"prompt": f"question {i} é", "chosen": f"good {i}", "rejected": f"bad {i}"}


def pair(i: int) -> Pair:
    return Pair(**row(i))


def lines(*numbers: int) -> bytes:
    return "".join(json.dumps(row(i)) + "\n" for i in numbers).encode()


def table(*numbers: int, group: int = 2) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row(i) for i in numbers]), sink, row_group_size=group)
    return sink.getvalue().to_pybytes()


def put(hub: Hub, files: dict[str, bytes], *, branch: str = "main", **how: Any) -> None:
    if not hub.store.repo("datasets", NAME):
        hub.store.create("datasets", NAME, **how)
    if branch != "main":
        hub.store.branch("datasets", NAME, branch)
    hub.store.commit("datasets", NAME, branch, "data", files)


def pairs(name: str) -> list[Pair]:
    file = ExampleFile.open(name)
    return [file[i] for i in range(len(file))]


KINDS: dict[str, dict[str, bytes]] = {
    "jsonl": {"train.jsonl": lines(0, 1, 2)},
    "json": {"train.json": json.dumps([row(i) for i in range(3)], indent=1).encode()},
    "gz": {"train.jsonl.gz": gzip.compress(lines(0, 1, 2))},
    "parquet": {"data/train-00000-of-00001.parquet": table(0, 1, 2)},
    "shards": {"data/train-00000-of-00002.parquet": table(0, 1), "data/train-00001-of-00002.parquet": table(2)},
    "shards, mixed": {"train/0.json": json.dumps([row(0)]).encode(), "train/1.jsonl": lines(1, 2)[:-1]},
    "many files": {"train.jsonl": lines(0, 1, 2), **{f"extra/{i}.txt": b"x" for i in range(20)}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, hub: Hub) -> None:
    put(hub, {"README.md": b"# Preferences\n", "test.jsonl": lines(9), **KINDS[kind]})
    assert pairs(NAME) == [pair(0), pair(1), pair(2)]
    assert find_data_files(NAME, None) == (NAME, None)
    file = ExampleFile.open(NAME)
    assert file.location(2) == Where(NAME, 3) and file.name == NAME
    assert hub.count_requests("GET", "resolve/.*(test|extra)") == 0  # what is not meant is not fetched


def test_split_config_revision_and_validation(hub: Hub) -> None:
    card = b"""---
configs:
- {config_name: one, default: true, data_files: [{split: train, path: a.jsonl}, {split: dev, path: b.jsonl}]}
- {config_name: two, data_files: [{split: train, path: c.jsonl}]}
---
"""
    put(hub, {"README.md": card, "a.jsonl": lines(0), "b.jsonl": lines(1), "c.jsonl": lines(2)})
    put(hub, {"a.jsonl": lines(7)}, branch="next")
    commit = hub.store.resolve("datasets", NAME, "next")
    assert pairs(NAME) == [pair(0)] and pairs(f"{NAME}:dev") == [pair(1)] and pairs(f"{NAME}:two") == [pair(2)]
    assert pairs(f"{NAME}:two/train") == [pair(2)]
    assert pairs(f"{NAME}@next") == pairs(f"{NAME}@{commit}:one/train") == [pair(7)]
    assert find_data_files(NAME, None) == (NAME, f"{NAME}:one/dev")
    assert find_data_files(f"{NAME}@next:one", None) == (f"{NAME}@next:one", f"{NAME}@next:one/dev")
    assert find_data_files(f"{NAME}:train", None)[1] is None  # named as a file is: nothing beside it
    assert find_data_files(f"{NAME}:two", None)[1] is None
    assert find_data_files(NAME, f"{NAME}:two/train") == (NAME, f"{NAME}:two/train")


def test_a_revision_with_slashes(hub: Hub) -> None:
    put(hub, {"x.csv": b""})
    put(hub, {"default/train/0000.parquet": table(4)}, branch="refs/convert/parquet")
    assert pairs(f"{NAME}@refs/convert/parquet") == [pair(4)]


def test_again_and_offline_nothing_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, {"README.md": b"# Hi\n", **KINDS["shards"], "data/test-00000-of-00001.parquet": table(5)})
    assert len(pairs(NAME)) == 3
    before = hub.count_requests("GET", "/resolve/")
    assert len(pairs(NAME)) == 3 and hub.count_requests("GET", "/resolve/") == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert len(pairs(NAME)) == 3 and len(hub.requests) == asked
    with pytest.raises(UserError, match="no split `test`"):
        pairs(f"{NAME}:test")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        pairs("me/other")


PASSING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "429 on the list": ("GET", "/tree/", {"status": 429, "headers": {"Retry-After": "3"}}),
    "500 on the list": ("GET", "/tree/", {"status": 500, "times": 2}),
    "cut on the list": ("GET", "/tree/", {"cut": "request"}),
    "500 on a file's head": ("HEAD", r"resolve.*jsonl", {"status": 500}),
    "429 on a file": ("GET", r"resolve.*jsonl", {"status": 429, "headers": {"Retry-After": "3"}}),
    "cut in mid-file": ("GET", r"resolve.*jsonl", {"cut": "answer"}),
    "slow list": ("GET", "/tree/", {"delay": 2}),
    "slow in mid-file": ("GET", r"resolve.*jsonl", {"cut": "answer", "delay": 2}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    method, path, how = PASSING[name]
    put(hub, {"README.md": b"# Hi\n", "train.jsonl": lines(*range(500))})
    if "slow" in name:
        monkeypatch.setattr(mlx_dpo.utils.hub_client, "REQUEST_TIMEOUT", 1.0)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    hub.inject_fault(method, path, **how)
    assert pairs(NAME) == [pair(i) for i in range(500)]
    assert not any(fault.times for fault in hub.faults.faults)


LASTING: dict[str, tuple[str, list[tuple[str, str, dict[str, Any]]], tuple[str, ...]]] = {
    "missing": ("me/nothing", [], ("no such file or folder here, and", "no repository of this name, or it is private")),
    "no such revision": (f"{NAME}@old", [], ("no revision `old`",)),
    "no such split": (f"{NAME}:tset", [], ("no split `tset`", "train")),
    "500": (NAME, [("GET", "/api/datasets/", {"status": 500})], ("server error (status 500)",)),
    "500 on the file": (NAME, [("GET", "train.jsonl", {"status": 500})], ("server error (status 500)",)),
    "429": (NAME, [("GET", "/tree/", {"status": 429})], ("429",)),
    "403": (NAME, [("GET", "/api/datasets/", {"status": 403})], ("may not read", "on purpose")),
    "cut": (NAME, [("GET", "/api/datasets/", {"cut": "request"})], ("can't be reached",)),
    "cut in every file": (NAME, [("GET", "train.jsonl", {"cut": "request"})], ("can't be reached",)),
    "slow": (NAME, [("GET", "/api/datasets/", {"delay": 1})], ("does not answer",)),
    "not the Hub at all": (NAME, [("GET", "/api/datasets/", {"status": 200, "body": "<html>"})], ("can't be reached",)),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_stays_is_one_sentence(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data, faults, words = LASTING[name]
    put(hub, {"README.md": b"# Hi\n", "train.jsonl": lines(*range(50))})
    if name == "slow":
        monkeypatch.setattr(mlx_dpo.utils.hub_client, "REQUEST_TIMEOUT", 0.5)
    for method, path, how in faults:
        hub.inject_fault(method, path, **{"times": 1000, **how})
    with pytest.raises(UserError) as raised:
        pairs(data)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert message.startswith(data) and "Traceback" not in message and len(raised.value.message.splitlines()) == 1


@pytest.mark.parametrize(("how", "said"), [({"private": True}, "or it is private"), ({"gated": True}, "gated")])
def test_private_and_gated(how: dict[str, bool], said: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, {"README.md": b"# Hi\n", "train.jsonl": lines(0)}, **how)
    if "private" in how:
        assert pairs(NAME) == [pair(0)]
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=said) as raised:
        pairs(f"{NAME}@main")
    assert "hf auth login" in str(raised.value)
    assert "gated" not in how or f"{hub.url}/datasets/{NAME}." in str(raised.value)


def test_nobody_there(hub: Hub) -> None:
    hub.close()
    with pytest.raises(UserError, match=r"Hub at 127\.0\.0\.1:\d+ \(HF_ENDPOINT\) can't be reached"):
        pairs(NAME)


@pytest.mark.parametrize(
    "file", ["../../evil/train.jsonl", "/etc/train.jsonl", "a/../../train.jsonl", "C:\\x\\train.jsonl"]
)
def test_names_that_leave_their_folder(file: str, hub: Hub) -> None:
    put(hub, {"README.md": b"# Hi\n", file: lines(0)})
    with pytest.raises(UserError, match="leaves its folder"):
        pairs(NAME)
    assert hub.count_requests("GET", "resolve/.*train") == 0


def test_a_card_that_is_none(hub: Hub) -> None:
    for card in (b"---\n: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe", b"", b"---\nconfigs: [1, {}]\n---\n"):
        put(hub, {"README.md": card, "train.jsonl": lines(0)})
        assert pairs(NAME) == [pair(0)]


def test_without_a_card(hub: Hub) -> None:
    put(hub, {"train.jsonl": lines(0)})
    assert pairs(NAME) == [pair(0)]


def test_a_bad_row_is_named(hub: Hub) -> None:
    put(hub, {"train/0.jsonl": lines(0, 1), "train/1.jsonl": lines(2) + b'{"prompt": "q", "chosen": "a"}\n'})
    with pytest.raises(UserError, match=rf"{NAME}:4: `rejected`"):
        pairs(NAME)


def test_a_damaged_file_is_named(hub: Hub) -> None:
    for file, content in (("train.parquet", table(0)[:-9]), ("train.jsonl.gz", gzip.compress(lines(0))[:-9])):
        hub.store.create("datasets", f"me/{file}")
        hub.store.commit("datasets", f"me/{file}", "main", "data", {file: content})
        with pytest.raises(UserError, match=rf"me/{file}@main \({file}\): the (gzip|parquet) file"):
            pairs(f"me/{file}@main")


def test_without_pyarrow(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, KINDS["parquet"])
    (tmp_path / "a.parquet").write_bytes(table(0, 1))
    assert pairs(str(tmp_path / "a.parquet")) == [pair(0), pair(1)]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in (NAME, str(tmp_path / "a.parquet")):
        with pytest.raises(UserError, match=r"pip install 'mlx-dpo\[parquet\]'"):
            pairs(name)


def test_memory_does_not_grow_with_the_set(hub: Hub) -> None:
    size, count = 10_000, 1_000
    long = [{**row(i), "chosen": f"{i} " + "a" * size} for i in range(count)]
    text = "".join(json.dumps(one) + "\n" for one in long).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(long), sink, row_group_size=100, compression="none", use_dictionary=False)
    parquet = sink.getvalue().to_pybytes()
    files = {f"train/{i}.jsonl.gz": gzip.compress(text, 1) for i in range(2)} | {"train/2.parquet": parquet}
    put(hub, files)
    ExampleFile.open(NAME).close()  # fetched, which is the client's own business
    del text, long, sink, parquet, files
    pool = pa.default_memory_pool()
    held = pool.bytes_allocated()
    tracemalloc.start()
    file = ExampleFile.open(NAME)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file) == 3 * count and peak < 9_000_000, f"{peak:,} bytes for {3 * count * size:,}"
    assert pool.bytes_allocated() - held < 3_000_000


def test_the_data_commands_take_it(hub: Hub, mlx_dpo_cli: Callable[..., CommandResult], tmp_path: Path) -> None:  # noqa: F811
    put(hub, {"README.md": b"# Hi\n", **KINDS["shards"]})
    ran = mlx_dpo_cli("data", "check", NAME, "--json")
    assert ran.code == 0 and json.loads(ran.out)["pairs"] == 3, ran.err
    assert mlx_dpo_cli("data", "convert", f"{NAME}@main:train", tmp_path / "out.jsonl").code == 0
    assert pairs(str(tmp_path / "out.jsonl")) == [pair(0), pair(1), pair(2)]
    shown = mlx_dpo_cli("data", "show", 2, NAME, "--model", CHECKPOINT)
    assert shown.code == 0 and "question 1" in shown.out
    assert "Fetching" not in ran.err and "allow_patterns" not in ran.err


def test_local_names_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    for name in ("me/prefs", "x/pairs.jsonl", "-", "pairs", "/a/b", "./a/b", "a/b/c", "x" * 5000, "a\0/b", "~/x"):
        assert parse_hub_name(name) is None, name
    assert parse_hub_name("you/prefs") and parse_hub_name("you/prefs@v1:a/b")
