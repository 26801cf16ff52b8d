"""lineage.json: written and read back, shared without paths, and damaged or of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.lineage.lineage_file import (
    LINEAGE_FILE,
    BaseModel,
    Lineage,
    Publication,
    lineage_json,
    read_lineage,
    shareable_lineage,
    write_lineage,
)
from mlx_dpo.lineage.lineage_steps import loss_names
from mlx_dpo.lineage.lineage_text import describe_lineage

HUB = BaseModel("org/gemma@v2", "org/gemma", "v2", "a" * 40, weights="12")
SFT = Lineage("fused", HUB, ("sft",), published=Publication("me/sft", "b" * 40, "34"))
DPO = Lineage("adapter", BaseModel("/home/me/models/sft", weights="34", lineage=SFT), ("sigmoid",))
START = Lineage("adapter", None, ("kto",), trained_on=BaseModel("../secret/x", quantized_from="org/x"))


@pytest.mark.parametrize("lineage", [SFT, DPO, Lineage("adapter", HUB, ("sigmoid", "sft"), starts_from=START)])
def test_written_and_read_back(tmp_path: Path, lineage: Lineage) -> None:
    write_lineage(tmp_path, lineage)
    assert read_lineage(tmp_path) == lineage
    assert json.loads((tmp_path / LINEAGE_FILE).read_text())["version"] == 1


@pytest.mark.parametrize(
    ("lineage", "text"),
    [
        (SFT, "SFT of org/gemma"),
        (DPO, "DPO of SFT of org/gemma"),
        (Lineage("adapter", HUB, ("sigmoid", "sft"), starts_from=START), "DPO+SFT of KTO of org/gemma"),
        (Lineage("adapter", BaseModel("./gemma")), "a fine-tune of ./gemma"),
        (Lineage("adapter", BaseModel("x", "me/x", lineage=SFT), ("apo_zero",)), "APO-ZERO of me/x (SFT of org/gemma)"),
        (Lineage("fused", HUB, trained_on=BaseModel("x")), "a fine-tune of org/gemma (trained on x)"),
        (Lineage("adapter", BaseModel("", quantized_from="org/x")), "a fine-tune of a model in memory (quantized from"),
    ],
)
def test_in_one_line(lineage: Lineage, text: str) -> None:
    assert describe_lineage(lineage).startswith(text)


def test_shared_without_paths_and_without_where_it_was_pushed() -> None:
    shared = lineage_json(shareable_lineage(Lineage("adapter", DPO.base, starts_from=START)))
    assert "/home" not in shared and "secret" not in shared and "me/sft" not in shared and "org/gemma@v2" in shared
    assert json.loads(shared)["base"]["name"] == "sft"


def test_a_file_of_another_program_is_none_of_ours(tmp_path: Path) -> None:
    for content in ("{}", '{"format": "other", "version": 1}'):
        (tmp_path / LINEAGE_FILE).write_text(content)
        assert read_lineage(tmp_path) is None
    assert read_lineage(tmp_path / "missing") is None


def nested(depth: int) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": "fused"}
    for _ in range(depth):
        values = {"kind": "fused", "base": {"name": "x", "lineage": values}}
    return values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"version": 2}, "a later version"),
        ({"kind": "poem"}, "kind 'poem'"),
        ({"kind": "fused", "base": {"name": 3}}, "3 is not a text"),
        ({"kind": "fused", "base": {"name": "x", "repo_id": "../../x"}}, "not a Hub id"),
        ({"kind": "fused", "base": {"name": "x", "quantized_from": "org/x@v"}}, "not a Hub id"),
        ({"kind": "fused", "base": ["x"]}, "damaged"),
        ({"kind": "fused", "methods": 3}, "damaged"),
        ({}, "damaged"),
        (nested(300), "too many"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    (tmp_path / LINEAGE_FILE).write_text(json.dumps({"format": "mlx-dpo lineage", "version": 1, **values}))
    with pytest.raises(UserError, match=problem) as raised:
        read_lineage(tmp_path)
    assert LINEAGE_FILE in str(raised.value) and "\n" not in raised.value.message


def test_names_of_losses() -> None:
    assert loss_names("sigmoid=0.8, sft=0.2") == ("sigmoid", "sft")
    assert loss_names("/home/me/mine.py:focal=1,ipo") == ("focal", "ipo") and loss_names("") == ()
