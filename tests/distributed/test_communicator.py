"""What ranks exchange, and how they finish together."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_dpo.distributed.rank_environment import is_main_process, launcher_rank
from tests.distributed.ranks import run_job

SIZE = 3


def test_collectives(tmp_path: Path) -> None:
    results = run_job(tmp_path, SIZE, "collectives")
    for rank, result in enumerate(results):
        start = [0, 0, 1][rank]
        assert result["concatenated"] == [[[1, 1], [2, 2], [2, 2]], [False, False, True], start, start + rank]
        assert result["broadcast"] == "from 0"
        assert result["any"] == [True, False]
        assert result["x"] == [[6, 6]] * 3
        assert result["y"] == [["mlx.core.bfloat16", [3] * 4], ["mlx.core.float32", [0, 3, 6, 9, 12]]]
        assert result["bytes_sent"] == 2 * (SIZE - 1) * (2 * 2 + 4 * 4)  # 4 of two bytes and 11 of four, in three parts
        assert result["local_items"] == list(range(7))[rank::SIZE]
        assert result["round_robin"] == [[rank], [rank + 3] if rank < 2 else []]


def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    ends = run_job(tmp_path, SIZE, "fail_together", ending="refused")
    message = "rows.jsonl:3: `prompt`: that is wrong"
    assert ends[1] == ["UserError", f"{message}\nDo this."]
    assert ends[0] == ends[2] == ["RemoteError", f"{message} (on rank 1)\nDo this."]


@pytest.mark.slow
def test_a_killed_rank_is_noticed(tmp_path: Path) -> None:
    ends = run_job(tmp_path, SIZE, "fail_together", ending="killed")
    assert ends[0][0] == ends[2][0] == "RankLost"


@pytest.mark.slow
def test_all_ranks_stop_together(tmp_path: Path) -> None:
    assert {end[0] for end in run_job(tmp_path, SIZE, "fail_together", ending="stopped")} == {"Interrupted"}


def test_launcher_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLX_RANK", "MLX_HOSTFILE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launcher_rank() is None and is_main_process()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    assert launcher_rank() == 2 and not is_main_process()
    monkeypatch.setenv("MLX_RANK", "0")
    assert launcher_rank() == 0 and is_main_process()
    hosts = tmp_path / "hosts.json"
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    for written, alone in (("", True), ('[["127.0.0.1:1"]]', True), ('[["127.0.0.1:1"], ["127.0.0.1:2"]]', False)):
        hosts.write_text(written)  # as mlx.launch does for one process, or by hand
        assert (launcher_rank() is None) == alone
