"""Verdicts of several people: the pairs that most agree on, and how far they agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.cli import main
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import UserError, Where
from mlx_dpo.labeling.verdict_merging import merge_verdicts, vote_kappa


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(number: int, is_first_better: bool, **columns: Any) -> dict[str, Any]:
    completions = [f"a{number}", f"b{number}"]
    chosen, rejected = completions if is_first_better else reversed(completions)
    return {"prompt": f"p{number}", "chosen": chosen, "rejected": rejected, **columns}


def tie(number: int) -> dict[str, Any]:
    return {"prompt": f"p{number}", "completions": [f"b{number}", f"a{number}"], "scores": [0, 0]}


def test_the_majority_is_written(tmp_path: Path) -> None:
    ana = write(tmp_path / "ana.jsonl", pair(1, True), pair(2, True), pair(3, True), tie(4))
    ben = write(tmp_path / "ben.jsonl", pair(1, True), pair(2, False), pair(3, False), tie(4))
    eva = write(tmp_path / "eva.jsonl", pair(3, False), tie(1), pair(5, False))
    summary = merge_verdicts([ana, ben, eva], tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [
        {"prompt": "p1", "chosen": "a1", "rejected": "b1", "votes": [2, 0, 1]},
        {"prompt": "p3", "chosen": "b3", "rejected": "a3", "votes": [2, 1, 0]},
        {"prompt": "p5", "chosen": "b5", "rejected": "a5", "votes": [1, 0, 0]},
    ]
    assert all(len(parse_examples(row, Where("out"))) == 1 for row in rows)
    assert summary["labellers"] == {"ana": 4, "ben": 4, "eva": 3}
    assert (summary["comparisons"], summary["pairs"], summary["undecided"], summary["changed"]) == (5, 3, 2, 0)
    agreement = {tuple(row["labellers"]): row for row in summary["agreement"]}
    assert agreement["ana", "ben"]["compared"] == 4 and agreement["ana", "ben"]["agreement"] == 0.5
    assert agreement["ana", "eva"]["compared"] == 2 and agreement["ana", "eva"]["agreement"] == 0


def test_a_column_names_the_labeller_and_the_last_verdict_counts(tmp_path: Path) -> None:
    file = write(
        tmp_path / "all.jsonl",
        pair(1, True, labeller="ana"),
        pair(1, False, labeller="ben"),
        pair(1, False, labeller="ana"),
    )
    summary = merge_verdicts([file], tmp_path / "out.jsonl")
    assert summary["labellers"] == {"ana": 1, "ben": 1} and summary["changed"] == 1
    assert json.loads((tmp_path / "out.jsonl").read_text())["votes"] == [2, 0, 0]


def test_rejected_lists_of_conversations_are_all_compared(tmp_path: Path) -> None:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    prompt = [{"role": "user", "content": "p"}, *turn("q"), {"role": "user", "content": "r"}]
    row = {"prompt": prompt, "chosen": turn("a"), "rejected": [turn("b"), turn("c")]}
    summary = merge_verdicts([write(tmp_path / "ana.jsonl", row)], tmp_path / "out.jsonl")
    assert summary["pairs"] == 2
    rejected = [json.loads(line)["rejected"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rejected == [turn("b"), turn("c")]


def test_kappa() -> None:
    assert vote_kappa(np.array([[1, 1], [-1, -1], [0, 0]])) == 1
    assert vote_kappa(np.array([[1, 1], [1, -1]])) == 0
    rng = np.random.default_rng(0)
    votes = rng.choice([1, -1, 0], p=[0.4, 0.4, 0.2], size=(20_000, 2))
    assert abs(vote_kappa(votes)) < 0.02
    # scikit-learn's cohen_kappa_score of both orders, [v, -v]: (0.6 - 0.36) / (1 - 0.36)
    five = np.array([[1, 1], [1, 1], [-1, 0], [0, 0], [1, -1]])
    both_orders = np.concatenate([five, -five])
    shares = [[(both_orders[:, column] == value).mean() for value in (1, 0, -1)] for column in (0, 1)]
    expected = float(np.dot(*shares))
    assert vote_kappa(five) == pytest.approx((0.6 - expected) / (1 - expected))


def test_kappa_of_each_two_of_three_people(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    votes = {
        name: dict(enumerate(rng.choice([1, -1, 0], p=[0.6, 0.3, 0.1], size=40))) for name in ("ana", "ben", "eva")
    }
    votes["eva"] = {number: vote for number, vote in votes["eva"].items() if number >= 10}  # has judged fewer
    files = [
        write(tmp_path / f"{name}.jsonl", *(pair(n, vote > 0) if vote else tie(n) for n, vote in own.items()))
        for name, own in votes.items()
    ]
    agreements = merge_verdicts(files, tmp_path / "out.jsonl")["agreement"]
    assert [row["labellers"] for row in agreements] == [["ana", "ben"], ["ana", "eva"], ["ben", "eva"]]
    for row in agreements:
        first, second = (votes[name] for name in row["labellers"])
        shared = [number for number in first if number in second]
        table = np.zeros((3, 3), np.float64)  # of both orders of the two completions
        for number in shared:
            for sign in (1, -1):
                table[1 + sign * first[number], 1 + sign * second[number]] += 0.5 / len(shared)
        chance = table.sum(axis=0) @ table.sum(axis=1)
        assert row["compared"] == len(shared) and row["kappa"] == pytest.approx(
            (np.trace(table) - chance) / (1 - chance)
        )


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ana, ben = write(tmp_path / "ana.jsonl", pair(1, True)), write(tmp_path / "ben.jsonl", pair(1, True))
    out = str(tmp_path / "out.jsonl")

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["mlx-dpo", "label", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(str(end.value.code))

    assert run("--merge", ana, ben, "--output", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["pairs"] == 1 and summary["agreement"][0]["kappa"] == 1
    assert run("--merge", ana, "--output", out) == 2 and "exists" in capsys.readouterr().err
    assert run(ana, ben, "--judge", "j.py:x", "--output", out) == 2 and "--merge" in capsys.readouterr().err
    assert run(ana, "--output", out) == 2 and "judge" in capsys.readouterr().err
    assert run("--merge", ana, ben, "--output", str(tmp_path / "more.jsonl")) == 0
    assert "ana and ben" in capsys.readouterr().out


def test_a_file_without_preferences(tmp_path: Path) -> None:
    file = write(tmp_path / "labels.jsonl", {"prompt": "p", "completion": "c", "label": True})
    with pytest.raises(UserError, match="holds no preferences"):
        merge_verdicts([file], tmp_path / "out.jsonl")
