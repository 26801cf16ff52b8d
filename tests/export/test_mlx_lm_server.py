"""mlx_lm.server itself, on what train and fuse write: answers byte for byte those of `mlx-dpo compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mlx_dpo import TrainConfig, train
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.distributed.launcher import find_free_ports
from tests.cli.conftest import CommandResult
from tests.conftest import write_rows
from tests.export.servers import post, running_server

Cli = Callable[..., CommandResult]
PROMPTS = [row["prompt"] for row in load_pairs("valid")[:4]]
MAX_TOKENS = 24


@dataclass(frozen=True)
class Runs:
    """Folders of two runs, trained to curt and to polite answers; the server was started with the first."""

    first: Path
    second: Path
    client: httpx.Client

    def answers(self, **body: str) -> list[str]:
        """The server's answers to `PROMPTS`, greedy; `model` and `adapters` as a request may name them."""
        texts = []
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            reply = post(self.client, "/v1/chat/completions", messages=messages, max_tokens=MAX_TOKENS, **body)
            texts.append(reply["choices"][0]["message"]["content"].strip())
        return texts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("served")
    rows = load_pairs()[:40]
    curt = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    settings = {"iters": 3, "batch_size": 4, "warmup": 0, "steps_per_eval": 0, "valid_pairs": 8}
    for name, pairs, rate in (("first", curt, 3e-3), ("second", rows, 1e-2)):
        data, run = write_rows(folder / f"{name}.jsonl", pairs), folder / name
        train(TrainConfig(model=str(MODEL), data=str(data), adapter_path=str(run), learning_rate=rate, **settings))
    port = find_free_ports(1)
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(MODEL), "--port", str(port)]
    command += ["--adapter-path", str(folder / "first")]
    with running_server(command, f"http://127.0.0.1:{port}", folder / "log") as client:
        yield Runs(folder / "first", folder / "second", client)


def compared(mlx_dpo: Cli, run: Path) -> tuple[list[str], list[str]]:
    """The answers without and with an adapter, as `mlx-dpo compare` shows them."""
    flags = [flag for prompt in PROMPTS for flag in ("--prompt", prompt)]
    result = mlx_dpo("compare", "--adapter-path", run, "--max-tokens", MAX_TOKENS, *flags, "--json")
    rows = json.loads(result.out)["answers"]
    return [row["base"] for row in rows], [row["tuned"] for row in rows]


def test_adapters_are_swapped_by_request(mlx_dpo: Cli, runs: Runs) -> None:
    base, first = compared(mlx_dpo, runs.first)
    _, second = compared(mlx_dpo, runs.second)
    assert base != first != second != base, "or nothing is compared"
    assert runs.answers() == first  # the server's own --adapter-path
    assert runs.answers(model=str(MODEL), adapters=str(runs.second)) == second
    assert runs.answers(model=str(MODEL)) == base
    assert runs.answers(model=str(MODEL), adapters=str(runs.first)) == first


def test_a_request_without_a_model_keeps_the_adapter_of_the_server(runs: Runs) -> None:
    """docs/export.md asks to name the model for that."""
    assert runs.answers(adapters=str(runs.second)) == runs.answers()


def test_a_fused_folder_answers_as_the_adapter(mlx_dpo: Cli, runs: Runs, tmp_path: Path) -> None:
    fused = tmp_path / "fused"
    assert mlx_dpo("fuse", "--adapter-path", runs.first, "--save-path", fused, "--bits", "none").code == 0
    assert runs.answers(model=str(fused)) == compared(mlx_dpo, runs.first)[1]
