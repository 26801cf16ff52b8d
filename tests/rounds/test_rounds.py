"""Rounds on the tiny model: what is written, resumed, refused, and when they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import TrainConfig, UserError
from mlx_dpo.judges.function_judge import FunctionJudge, ScoringFunctionJudge
from mlx_dpo.judges.judge import Judge
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.rounds.rounds_config import RoundsConfig
from mlx_dpo.rounds.rounds_result import RoundsResult, best_round, reason_to_stop
from mlx_dpo.rounds.rounds_run import train_rounds, train_unless_finished
from mlx_dpo.sampling.completions import SamplingParams
from tests.conftest import CHECKPOINT, PAIRS, rows_of, write_rows

PROMPTS = [{"prompt": f"Question {i}?", "category": "xy"[i % 2]} for i in range(12)]
JUDGE = ScoringFunctionJudge(lambda prompt, answer: answer.count("e") + len(answer) / 100, "e")


def config(tmp_path: Path, **changes: Any) -> RoundsConfig:
    training = {"model": str(CHECKPOINT), "batch_size": 4, "learning_rate": 1e-2, "valid_data": str(PAIRS), "iters": 3}
    settings = {"rounds": 2, "n": 4, "sampling": SamplingParams(8, 1.0, seed=3), "early_stop": False} | changes
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    eval_prompts = tmp_path / "eval.txt"
    eval_prompts.write_text("".join(f"Another question {i}\n" for i in range(8)))
    training = TrainConfig(**training | settings.pop("training", {}))
    return RoundsConfig(training, str(prompts), tmp_path / "out", eval_prompts=str(eval_prompts), **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundsConfig, RoundsResult]:
    settings = config(tmp_path_factory.mktemp("rounds"))
    return settings, train_rounds(settings, JUDGE)


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def test_every_stage_is_kept(finished: tuple[RoundsConfig, RoundsResult]) -> None:
    settings, result = finished
    for number in (1, 2):
        folder = settings.output_dir / f"round-{number}"
        samples, pairs = rows_of(folder / "samples.jsonl"), rows_of(folder / "pairs.jsonl")
        assert [row["prompt"] for row in samples] == [row["prompt"] for row in PROMPTS]
        assert all(len(row["completions"]) == 4 for row in samples) and 0 < len(pairs) <= 12
        assert all(row["score_chosen"] > row["score_rejected"] for row in pairs)
        assert len(rows_of(folder / "answers.jsonl")) == 8
        evaluation = read(folder / "evaluation.json")
        assert evaluation == result.rounds[number - 1] and evaluation["labels"]["pairs"] == len(pairs)
        assert evaluation["held_out"]["pairs"] == 8 and 0 <= evaluation["against_start"]["win_rate"] <= 1
        assert evaluation["mean_score"]["start"] == result.rounds[0]["mean_score"]["start"]
    assert result.rounds[0]["against_previous"] == result.rounds[0]["against_start"]
    assert read(settings.output_dir / "rounds.json") == result.to_mapping() and result.best in (1, 2)
    assert result.adapter == settings.output_dir / f"round-{result.best}" / "adapter"


def test_the_page_has_every_round(finished: tuple[RoundsConfig, RoundsResult]) -> None:
    page = finished[1].page.read_text()
    assert "Win rate against the start" in page and "Another question 0" in page and "is best" in page
    assert "<th class=number>2</th>" in page and "http" not in page.split("<script>")[0].replace("http-equiv", "")


def test_each_round_starts_from_the_one_before(finished: tuple[RoundsConfig, RoundsResult]) -> None:
    settings, _ = finished
    first, second = (rows_of(settings.output_dir / f"round-{number}" / "samples.jsonl") for number in (1, 2))
    assert first[0]["seed"] == 3 and second[0]["seed"] > 3 + len(PROMPTS)
    assert all(a["completions"] != b["completions"] for a, b in zip(first, second, strict=True))
    configs = [
        (settings.output_dir / f"round-{number}" / "adapter" / "checkpoints" / "0000003" / "config.yaml").read_text()
        for number in (1, 2)
    ]
    assert "init_adapter: null" in configs[0] and "round-1/adapter" in configs[1]
    assert all("reference: initial" in text for text in configs)


def test_finished_rounds_stay_and_more_may_follow(tmp_path: Path) -> None:
    trained: list[str] = []

    def train_round(training: TrainConfig) -> None:
        trained.append(training.reference)
        train_unless_finished(training)

    one = config(tmp_path, rounds=1, reference="base")
    first = train_rounds(one, JUDGE, train_round=train_round)
    again = train_rounds(one, JUDGE, train_round=train_round)
    assert again == first and trained == ["base"]
    two = train_rounds(config(tmp_path, reference="base"), JUDGE, train_round=train_round)
    assert two.rounds[0] == first.rounds[0] and len(two.rounds) == 2 and trained == ["base", "base"]


@pytest.mark.parametrize(
    ("changes", "judge", "message"),
    [
        ({"n": 3}, JUDGE, "another `n`"),
        ({"reference": "base"}, JUDGE, "another `reference`"),
        ({"training": {"beta": 0.3}}, JUDGE, "another `beta`"),
        ({"labelling": LabelSettings(margin=0.5)}, JUDGE, "another `labelling.margin`"),
        ({}, FunctionJudge(lambda *_: 1, "first"), "another `judge`"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], judge: Judge, message: str) -> None:
    def fail(training: TrainConfig) -> None:
        raise UserError("no training here")

    with pytest.raises(UserError, match="no training"):
        train_rounds(config(tmp_path), JUDGE, train_round=fail)
    with pytest.raises(UserError, match=message):
        train_rounds(config(tmp_path, **changes), judge, train_round=fail)
    with pytest.raises(UserError, match="no training"):
        train_rounds(config(tmp_path, training={"memory_limit": "1GB"}), JUDGE, train_round=fail)
    write_rows(tmp_path / "out" / "prompts.jsonl", PROMPTS[1:])
    with pytest.raises(UserError, match="another `prompts`"):
        train_rounds(config(tmp_path), JUDGE, train_round=fail)


def test_a_judge_that_always_ties_ends_the_rounds(tmp_path: Path) -> None:
    result = train_rounds(config(tmp_path), ScoringFunctionJudge(lambda *_: 1, "same"))
    assert result.best is None and len(result.rounds) == 1 and "prefers no completion in round 1" in str(result.stopped)
    assert "No round has trained" in result.page.read_text()


def test_a_budget_is_kept_and_costs_nothing_done(tmp_path: Path, finished: tuple[RoundsConfig, RoundsResult]) -> None:
    judge = ScoringFunctionJudge(lambda prompt, answer: answer.count("e") + len(answer) / 100, "e", None, "budget")
    stops = []
    for budget in (20, 20, 20, 60, 60):
        result = train_rounds(config(tmp_path, max_calls=budget), judge)
        stops.append(result.stopped and result.stopped[-7:])
    assert stops == ["round 1"] * 3 + ["round 2", None]
    assert result.rounds == finished[1].rounds


def test_prompts_are_set_aside_for_the_evaluation(tmp_path: Path) -> None:
    def fail(training: TrainConfig) -> None:
        raise UserError("no training here")

    settings = config(tmp_path)
    rows = write_rows(tmp_path / "many.jsonl", [{"prompt": f"Question {i}?"} for i in range(30)])
    settings = RoundsConfig(settings.training, str(rows), settings.output_dir, n=2, sampling=settings.sampling)
    with pytest.raises(UserError, match="no training"):
        train_rounds(settings, JUDGE, train_round=fail)
    names = ("prompts.jsonl", "eval-prompts.jsonl")
    training, held_out = ([row["prompt"] for row in rows_of(settings.output_dir / name)] for name in names)
    assert len(held_out) == 3 and len(training) == 27 and not {*training} & {*held_out}
    few = write_rows(tmp_path / "few.jsonl", PROMPTS[:9])
    with pytest.raises(UserError, match="too few to set some aside"):
        train_rounds(RoundsConfig(settings.training, str(few), tmp_path / "few"), JUDGE)


def test_mistakes_are_found_before_anything_is_sampled(tmp_path: Path) -> None:
    class Broken(ScoringFunctionJudge):
        def check(self) -> None:
            raise UserError("the judge does not work")

    with pytest.raises(UserError, match="does not work"):
        train_rounds(config(tmp_path), Broken(lambda *_: 1, "broken"))
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "c"}])
    with pytest.raises(UserError, match=r"pairs.jsonl:1"):
        train_rounds(config(tmp_path, training={"valid_data": str(pairs)}), JUDGE)
    assert not (tmp_path / "out").exists()


def results(*lower_ends: float | None) -> list[dict[str, Any]]:
    return [
        {"round": i, "against_start": {"win_rate": 0.5, "win_rate_interval": [low, 1.0]}}
        for i, low in enumerate(lower_ends, 1)
    ]


def test_rounds_stop_when_the_interval_no_longer_rises() -> None:
    assert reason_to_stop([], True) is None and reason_to_stop(results(0.4), True) is None
    assert reason_to_stop(results(0.4, 0.5, 0.6), True) is None and best_round(results(0.4, 0.5, 0.6)) == 3
    for lower_ends in ((0.4, 0.4), (0.4, 0.6, 0.5), (0.4, None), (None, None)):
        assert "no longer rises" in str(reason_to_stop(results(*lower_ends), True))
        assert reason_to_stop(results(*lower_ends), False) is None
    assert best_round(results(0.4, 0.6, 0.5)) == 2 and best_round(results(0.4, 0.4)) == 1 and best_round([]) is None
    assert "prefers no completion in round 2" in str(reason_to_stop([*results(0.4), {"round": 2}], False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, "at least 2 completions"),
        ({"rounds": 0}, "at least 1"),
        ({"sampling": SamplingParams(temperature=0)}, "must be above 0"),
        ({"labelling": LabelSettings(format="scores")}, "trained on pairs"),
        ({"training": {"fine_tune_type": "full"}, "reference": "base"}, "full fine-tune's base"),
        ({"training": {"valid_data": "-"}}, "stdin"),
    ],
)
def test_settings_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, **changes)


def test_a_reward_model_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="writes no completions"):
        train_rounds(config(tmp_path, training={"loss": "reward"}), JUDGE)
    assert not (tmp_path / "out").exists()
