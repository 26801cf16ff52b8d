"""evaluate of several adapters and by column; score's command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows

Cli = Callable[..., CommandResult]
MODEL = ("--model", CHECKPOINT)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The pairs in two categories."""
    rows = [{**row, "category": "ab"[i % 2]} for i, row in enumerate(rows_of(PAIRS))]
    return write_rows(tmp_path / "data.jsonl", rows)


def test_several_adapters_are_measured_as_each_by_itself(mlx_dpo: Cli, tmp_path: Path, data: Path) -> None:
    trained = tmp_path / "run"
    train = ("--adapter-path", trained, "--iters", 2, "--save-every", 1, "--learning-rate", "1e-2")
    assert mlx_dpo("train", *MODEL, "--data", PAIRS, *train).code == 0
    adapters = (TRL / "adapter", trained / "checkpoints")
    flags = [flag for adapter in adapters for flag in ("--adapter-path", adapter)]
    ran = mlx_dpo("evaluate", *MODEL, "--data", data, *flags, "--by", "category", "--json")
    assert ran.code == 0, ran.err
    several = json.loads(ran.out)["adapters"]
    assert [Path(one["adapter"]).name for one in several] == ["adapter", "0000001", "0000002"]
    for one in several:
        one.pop("against_first", None)
        flags = ["--adapter-path", one.pop("adapter"), "--by", "category"]
        assert json.loads(mlx_dpo("evaluate", *MODEL, "--data", data, *flags, "--json").out) == one


def test_the_change_from_the_first_adapter(mlx_dpo: Cli, tmp_path: Path, data: Path) -> None:
    same = shutil.copytree(TRL / "adapter", tmp_path / "same")
    flags = ("--data", data, "--adapter-path", TRL / "adapter", "--adapter-path", same)
    first, second = json.loads(mlx_dpo("evaluate", *MODEL, *flags, "--json").out)["adapters"]
    assert "against_first" not in first
    none = {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    assert second["against_first"] == dict.fromkeys(("loss", "rewards/accuracies", "rewards/margins"), none)
    table = mlx_dpo("evaluate", *MODEL, *flags, "--by", "category").out
    assert "against" in table and "95%" in table and "category" in table


def test_categories_add_up_to_the_whole(mlx_dpo: Cli, data: Path) -> None:
    flags = ("--data", data, "--adapter-path", TRL / "adapter", "--by", "category", "--json")
    whole = json.loads(mlx_dpo("evaluate", *MODEL, *flags).out)
    parts = whole["by"]["category"]
    assert {label: part["pairs"] for label, part in parts.items()} == {"a": 4, "b": 4}
    for name, (low, high) in whole["intervals"].items():
        assert sum(part[name] for part in parts.values()) / 2 == pytest.approx(whole[name])
        assert low < whole[name] < high
    for label, part in parts.items():
        alone = write_rows(data.with_name(f"{label}.jsonl"), [row for row in rows_of(data) if row["category"] == label])
        told = json.loads(mlx_dpo("evaluate", *MODEL, "--data", alone, *flags[2:4], "--json").out)
        assert part.pop("intervals").keys() == told.pop("intervals").keys()
        assert part == pytest.approx(told, rel=1e-4, abs=1e-5)
    ran = mlx_dpo("evaluate", *MODEL, "--data", data, "--by", "kategorie")
    assert ran.code == 2 and "kategorie" in ran.err and "category" in ran.err


def test_pairs_of_one_row_are_one_draw(mlx_dpo: Cli, tmp_path: Path) -> None:
    """A ranked row makes many pairs, and they are no surer than the row is."""
    rows = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "scores": [1, 0]}
        for row in rows_of(PAIRS)
    ]
    alone = write_rows(tmp_path / "alone.jsonl", rows)
    more = [{**row, "completions": row["completions"] * 2, "scores": [2, 1, 2, 1]} for row in rows]
    ranked = write_rows(tmp_path / "ranked.jsonl", more)
    flags = ("--adapter-path", TRL / "adapter", "--json")
    one, other = (json.loads(mlx_dpo("evaluate", *MODEL, "--data", file, *flags).out) for file in (alone, ranked))
    assert (one["pairs"], other["pairs"]) == (8, 32)
    assert other["intervals"]["rewards/margins"] == pytest.approx(one["intervals"]["rewards/margins"], rel=1e-3)


def test_score_prints_what_evaluate_prints(mlx_dpo: Cli, tmp_path: Path, data: Path) -> None:
    flags = ("--data", data, "--adapter-path", TRL / "adapter", "--by", "category", "--json")
    scored = json.loads(mlx_dpo("score", *MODEL, *flags, "--output", tmp_path / "s.jsonl").out)
    measured = json.loads(mlx_dpo("evaluate", *MODEL, *flags).out)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"):
        assert scored[name] == measured[name]
        assert scored["intervals"][name] == measured["intervals"][name]
        for label, part in scored["by"]["category"].items():
            assert part[name] == measured["by"]["category"][label][name]
    ran = mlx_dpo("score", *MODEL, *flags[:-1], "--output", tmp_path / "s.jsonl")
    assert "8 rows" in ran.out and "rewards/accuracies" in ran.out and str(tmp_path / "s.jsonl") in ran.out
    ran = mlx_dpo("score", *MODEL, *flags, "--output", data)
    assert ran.code == 2 and "--output" in ran.err and rows_of(data)[0]["category"] == "a"


def test_answers_are_judged(mlx_dpo: Cli, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def longer(prompt, first, second):\n    return float(len(first) > len(second))\n")
    flags = ("--data", PAIRS, "--adapter-path", TRL / "adapter", "--max-tokens", 8, "--temp", 1, "--seed", 5)
    judged = (*MODEL, *flags, "--generate", 5, "--judge", f"{judge}:longer")
    told = json.loads(mlx_dpo("evaluate", *judged, "--json").out)
    match = told["head_to_head"]
    assert told["pairs"] == 8 and match["prompts"] == match["judged"] == len(match["answers"]) == 5
    prompts = write_rows(tmp_path / "p.jsonl", rows_of(PAIRS))
    flags = ("--adapter-path", TRL / "adapter", "--prompts", prompts, "--num-prompts", 5, "--max-tokens", 8)
    asked = json.loads(mlx_dpo("compare", *MODEL, *flags, "--temp", 1, "--seed", 5, "--json").out)["answers"]
    assert [(a["base"], a["tuned"]) for a in match["answers"]] == [(a["base"], a["tuned"]) for a in asked]
    longer = [(len(a["tuned"]) > len(a["base"])) - (len(a["tuned"]) < len(a["base"])) for a in asked]
    assert [a["score"] for a in match["answers"]] == [(1 + sign) / 2 for sign in longer]
    table = mlx_dpo("evaluate", *judged).out
    assert "win rate" in table and "length-controlled" in table and "changed with the order" in table
    by_rewards = json.loads(
        mlx_dpo("evaluate", *judged[:-1], TRL / "adapter", "--judge-model", CHECKPOINT, "--json").out
    )
    assert by_rewards["head_to_head"]["swayed_by_order"] == 0


def test_what_judging_needs(mlx_dpo: Cli) -> None:
    flags = (*MODEL, "--data", PAIRS)
    ran = mlx_dpo("evaluate", *flags, "--generate", 5)
    assert ran.code == 2 and "must be used together" in ran.err
    ran = mlx_dpo("evaluate", *flags, "--generate", 5, "--judge", CHECKPOINT)
    assert ran.code == 2 and "a tuned model are needed" in ran.err and "--adapter-path" in ran.err


def test_a_model_against_another(mlx_dpo: Cli) -> None:
    """As of a fused model against its base; here both are one."""
    flags = (*MODEL, "--data", PAIRS, "--reference", CHECKPOINT, "--generate", 3, "--max-tokens", 4)
    told = json.loads(mlx_dpo("evaluate", *flags, "--judge", CHECKPOINT, "--json").out)
    assert (told["head_to_head"]["ties"], told["head_to_head"]["win_rate"]) == (3, 0.5)


def test_an_adapter_trained_by_another_beta_is_told_of(mlx_dpo: Cli, tmp_path: Path) -> None:
    run = shutil.copytree(TRL / "adapter", tmp_path / "run")
    (run / "config.yaml").write_text("loss: sigmoid\nbeta: 0.6\nlabel_smoothing: 0.0\n")
    flags = ("--data", PAIRS, "--adapter-path", run)
    said = f"{run} was trained with --beta 0.6. Without"
    assert said in mlx_dpo("evaluate", *MODEL, *flags).err
    assert said in mlx_dpo("score", *MODEL, *flags, "--output", tmp_path / "s.jsonl").err
    assert "was trained with" not in mlx_dpo("evaluate", *MODEL, *flags, "--beta", 0.6).err
