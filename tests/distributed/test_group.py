"""What ranks tell each other, and how they end together."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_dpo.distributed.rank_environment import is_main_process, launcher_rank
from tests.distributed.ranks import run

SIZE = 3


def test_mail_sums_and_shares(tmp_path: Path) -> None:
    told = run(tmp_path, SIZE, "mails")
    for mine, one in enumerate(told):
        start = [0, 0, 1][mine]
        assert one["pooled"] == [[[1, 1], [2, 2], [2, 2]], [False, False, True], start, start + mine]
        assert one["first"] == "from 0"
        assert one["any"] == [True, False]
        assert one["x"] == [[6, 6]] * 3
        assert one["y"] == [["mlx.core.bfloat16", [3] * 4], ["mlx.core.float32", [0, 3, 6, 9, 12]]]
        assert one["sent"] == 2 * (SIZE - 1) * (2 * 2 + 4 * 4)  # 4 of two bytes and 11 of four, in three parts
        assert one["share"] == list(range(7))[mine::SIZE]
        assert one["turns"] == [[mine], [mine + 3] if mine < 2 else []]


def test_an_error_of_one_is_all_s(tmp_path: Path) -> None:
    ends = run(tmp_path, SIZE, "one_fate", what="refused")
    said = "rows.jsonl:3: `prompt`: that is wrong"
    assert ends[1] == ["UserError", f"{said}\nDo this."]
    assert ends[0] == ends[2] == ["Told", f"{said} (on rank 1)\nDo this."]


def test_a_rank_that_dies_is_missed(tmp_path: Path) -> None:
    ends = run(tmp_path, SIZE, "one_fate", what="killed")
    assert ends[0][0] == ends[2][0] == "RankLost"


def test_all_stop_together(tmp_path: Path) -> None:
    assert {end[0] for end in run(tmp_path, SIZE, "one_fate", what="stopped")} == {"Interrupted"}


def test_who_is_who(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
