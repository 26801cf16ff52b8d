"""Two people judge what `sample` wrote, each with a server of their own: what is merged, trained on, and never lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Pair
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.sample_prompts import sample
from tests.web.collect_server_process import MODEL, ROOT, CollectServer, collect_server

PROMPTS = 8
Judge = Callable[[list[str]], tuple[str, int | None]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three completions of each prompt."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "prompts.txt").write_text("".join(f"What does animal {i} eat?\n" for i in range(PROMPTS)))
    output = folder / "samples.jsonl"
    sample(str(ROOT / MODEL), str(folder / "prompts.txt"), output, SamplingParams(12, temperature=1.2), n=3)
    return output


@pytest.fixture
def servers(samples: Path, tmp_path: Path) -> Iterator[list[CollectServer]]:
    """Of ana and of ben, at the same time."""
    with review_server(tmp_path, samples, "ana") as ana, review_server(tmp_path, samples, "ben") as ben:
        yield [ana, ben]


def review_server(folder: Path, file: Path, labeller: str, output: str | None = None) -> Any:
    (folder / labeller).mkdir(exist_ok=True)
    return collect_server(
        folder / labeller,
        "--review",
        str(file),
        "--labeller",
        labeller,
        model=None,
        output=output or f"{labeller}.jsonl",
    )


def post(client: httpx.Client, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def judge_next(client: httpx.Client, judge: Judge) -> list[str] | None:
    """Give a verdict on the next comparison, and return the ids of its rows; None if all are judged."""
    shown = client.get("/api/review/next").json()["comparison"]
    if shown is None:
        return None
    kind, index = judge([answer["html"] for answer in shown["answers"]])
    return list(post(client, "/api/review/verdicts", shown=shown["shown"], kind=kind, index=index)["ids"])


def draw_by(labeller: str) -> Judge:
    """A person who often agrees with others: a fixed verdict on each set of texts, with ties among them."""

    def judge(texts: list[str]) -> tuple[str, int | None]:
        digest = hashlib.blake2b(f"{labeller}{sorted(texts)}".encode()).digest()
        if digest[0] < 60:
            return ("tie", "both_bad")[digest[1] % 2], None
        return "choice", texts.index(min(texts) if digest[0] < 180 else max(texts))

    return judge


def votes_of(file: Path) -> dict[tuple[str, str, str], int]:
    """1 where the alphabetically first of two texts is better, -1 where the other one is, 0 for a tie."""
    votes = {}
    for row in map(json.loads, file.read_text().splitlines()):
        if "chosen" in row:
            rejected = row["rejected"] if isinstance(row["rejected"], list) else [row["rejected"]]
            for text in rejected:
                votes[row["prompt"], *sorted([row["chosen"], text])] = 1 if row["chosen"] < text else -1
        else:
            assert row["scores"] == [0] * len(row["completions"])
            for pair in combinations(sorted(row["completions"]), 2):
                votes[row["prompt"], *pair] = 0
    return votes


def cohens_kappa(first: list[int], second: list[int]) -> float:
    """As Cohen (1960) defines it, from the table of both people's categories."""
    table = np.zeros((3, 3), np.float64)
    for one, other in zip(first, second, strict=True):
        table[one + 1, other + 1] += 1
    table /= table.sum()
    chance = float(table.sum(axis=0) @ table.sum(axis=1))
    return (float(np.trace(table)) - chance) / (1 - chance)


def test_what_two_people_judge_is_merged_and_trained_on(servers: list[CollectServer], tmp_path: Path) -> None:
    clients = [server.client() for server in servers]
    num_rows = 0
    for client, name in zip(clients, ("ana", "ben"), strict=True):
        while judge_next(client, draw_by(name)):
            num_rows += 1
        client.close()
    files = [server.output for server in servers]
    votes = [votes_of(file) for file in files]
    assert num_rows == sum(len(file.read_text().splitlines()) for file in files)
    merged = tmp_path / "merged.jsonl"
    command = [sys.executable, "-m", "mlx_dpo", "label", "--merge", *map(str, files), "--output", str(merged), "--json"]
    summary = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    shared = [key for key in votes[0] if key in votes[1]]  # the two that a person did not choose are not compared
    both = [[own[key] for key in shared] for own in votes]
    assert summary["labellers"] == {"ana": len(votes[0]), "ben": len(votes[1])}
    (agreement,) = summary["agreement"]
    equal = sum(one == other for one, other in zip(*both, strict=True))
    assert agreement["compared"] == len(shared) > PROMPTS and 0 < equal < len(shared)
    assert agreement["agreement"] == equal / len(shared)
    in_both_orders = [own + [-vote for vote in own] for own in both]  # which of two texts is first means nothing
    assert agreement["kappa"] == pytest.approx(cohens_kappa(*in_both_orders), abs=1e-12)

    comparisons = {*votes[0], *votes[1]}
    expected = set()
    for prompt, *texts in comparisons:
        if majority := sum(own.get((prompt, *texts), 0) for own in votes):
            expected.add((prompt, *(texts if majority > 0 else reversed(texts))))
    examples = ExampleFile.open(str(merged))
    loaded = [examples[i] for i in range(len(examples))]
    assert all(isinstance(pair, Pair) for pair in loaded)
    assert len(loaded) == len(expected) and {(pair.prompt, *pair.completions) for pair in loaded} == expected
    assert summary["pairs"] == len(loaded) and summary["undecided"] == len(comparisons) - len(loaded) > 0


def test_a_killed_server_loses_no_verdict(servers: list[CollectServer]) -> None:
    server, judge = servers[0], draw_by("ana")
    with server.client() as client:
        ids = [*(judge_next(client, judge) or []), *(judge_next(client, judge) or [])]
        server.kill()  # as soon as the verdict is acknowledged
        assert [row["id"] for row in server.rows("ana.jsonl")] == ids and len(ids) == 2
        server.start()
        assert client.get("/api/review").json()["judged"] == 2
        shown = client.get("/api/review/next").json()["comparison"]
        server.kill()
        server.start()
        assert client.get("/api/review/next").json()["comparison"] == shown, "the same, in the same order"
        ids += post(client, "/api/review/verdicts", shown=shown["shown"], kind="choice", index=0)["ids"]
        server.kill()
    assert [row["id"] for row in server.rows("ana.jsonl")] == ids and len(ids) == 3


def test_two_servers_write_to_one_file(samples: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "all.jsonl")
    names = ("ana", "ben")

    def judge_all(server: CollectServer, name: str) -> list[str]:
        kept = []
        with server.client() as client:
            while ids := judge_next(client, draw_by(name)):
                if len(kept) % 2:  # an undo replaces the file, while the other one appends to it
                    assert post(client, "/api/verdicts/remove", ids=ids)["removed"] == 1
                    ids = judge_next(client, draw_by(name)) or []
                kept += ids
        return kept

    with (
        review_server(tmp_path, samples, "ana", output) as ana,
        review_server(tmp_path, samples, "ben", output) as ben,
        ThreadPoolExecutor() as executor,
    ):
        kept = [*executor.map(judge_all, (ana, ben), names)]
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    for name, ids in zip(names, kept, strict=True):
        assert len(ids) >= PROMPTS and [row["id"] for row in rows if row["labeller"] == name] == ids
    assert len(rows) == sum(map(len, kept))


def test_other_sites_and_programs_are_refused(servers: list[CollectServer]) -> None:
    server, other = servers
    for path in ("/api/review", "/api/review/next"):
        assert httpx.get(server.address + path).status_code == 403
    with server.client() as client:
        shown = client.get("/api/review/next").json()["comparison"]["shown"]
        for path in ("verdicts", "skipped", "labeller"):
            body = {"shown": shown, "kind": "tie", "name": "eva"}
            for headers in ({"Origin": "https://example.com"}, {"Origin": other.address}, {"Host": "example.com"}):
                response = client.post(f"/api/review/{path}", json=body, headers=headers)
                assert response.status_code == 403, (path, headers)
            assert httpx.post(f"{server.address}/api/review/{path}", json=body).status_code == 403
        assert client.get("/api/review").json()["judged"] == 0 and server.rows("ana.jsonl") == []
