"""What verdicts make of answers: rows that `train` reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.web.preference_file import PreferenceFile
from mlx_dpo.web.verdicts import HumanVerdict, VerdictFiles

USER = [{"role": "user", "content": "Hi"}]
CHAT = [{"role": "system", "content": "Be kind."}, *USER, {"role": "assistant", "content": "Yes?"}, *USER]


def verdict(**values: Any) -> HumanVerdict:
    return HumanVerdict.from_json({"messages": USER, "answers": ["a", "b", "c"], **values})


def rows(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "id"} for line in path.read_text().splitlines()]


def test_rows(tmp_path: Path) -> None:
    files = VerdictFiles(tmp_path / "pairs.jsonl")
    files.add(verdict(kind="choice", index=1))
    files.add(verdict(kind="choice", index=0, messages=CHAT, answers=["a", "b"]))
    files.add(verdict(kind="edit", index=2, edited="d"))
    files.add(verdict(kind="tie"))
    files.add(verdict(kind="both_bad", answers=["a", "b"]))
    files.add(verdict(kind="thumbs", index=0, is_good=True))
    assert rows(tmp_path / "pairs.jsonl") == [
        {"prompt": "Hi", "chosen": "b", "rejected": ["a", "c"]},
        {
            "prompt": CHAT,
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        {"prompt": "Hi", "chosen": "d", "rejected": "c", "edited": True},
        {"prompt": "Hi", "completions": ["a", "b", "c"], "scores": [0, 0, 0]},
    ]
    assert rows(tmp_path / "pairs.labels.jsonl") == [
        {"prompt": "Hi", "completion": "a", "label": False},
        {"prompt": "Hi", "completion": "b", "label": False},
        {"prompt": "Hi", "completion": "a", "label": True},
    ]
    assert files.counts() == {"preferences": 3, "ties": 1, "labels": 3}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "best"}, "kind"),
        ({"kind": "choice"}, "index"),
        ({"kind": "choice", "index": 3}, "index"),
        ({"kind": "choice", "index": 0, "answers": ["a"]}, "answers"),
        ({"kind": "choice", "index": 0, "answers": ["a", " "]}, "answers"),
        ({"kind": "choice", "index": 0, "messages": []}, "messages"),
        ({"kind": "choice", "index": 0, "messages": CHAT[:3]}, "messages"),
        ({"kind": "edit", "index": 0, "edited": "a"}, "edited"),
        ({"kind": "edit", "index": 0}, "edited"),
        ({"kind": "thumbs", "index": 0, "is_good": "yes"}, "is_good"),
    ],
)
def test_what_is_no_verdict(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as error:
        verdict(**values)
    assert error.value.field == field


def test_removed_rows_leave_the_others_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt":"p",  "chosen": "c", "rejected": "r"}\nnot JSON\n')
    files = VerdictFiles(path)
    before = path.read_bytes()
    (row_id,) = files.add(verdict(kind="choice", index=0))
    assert path.read_bytes().startswith(before)
    assert files.remove([row_id]) == 1 and path.read_bytes() == before
    assert files.remove([row_id]) == 0


def test_a_file_that_several_servers_write_to(tmp_path: Path) -> None:
    """Each has a lock of its own for its threads; a removal replaces the file while others append to it."""
    path = tmp_path / "pairs.jsonl"

    def write(name: int) -> list[str]:
        file, kept = PreferenceFile(path), []
        for i in range(40):
            row_id = f"{name}-{i}"
            file.append_lines([json.dumps({"id": row_id}).encode() + b"\n"])
            if i % 2:
                assert file.remove(row_id)
            else:
                kept.append(row_id)
        return kept

    with ThreadPoolExecutor(4) as executor:
        kept = [*executor.map(write, range(4))]
    ids = [row["id"] for row in map(json.loads, path.read_text().splitlines())]
    assert sorted(ids) == sorted(row_id for own in kept for row_id in own)


def test_nothing_is_removed_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert not PreferenceFile(tmp_path / "pairs.jsonl").remove("id") and not list(tmp_path.iterdir())
