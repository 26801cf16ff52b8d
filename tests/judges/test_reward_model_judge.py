"""A reward model as a judge: what accepts it, its scores, and what becomes of answers without one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_dpo import RewardModel
from mlx_dpo.adapters.adapter_folder import REWARD_HEAD_FILE
from mlx_dpo.errors import UserError
from mlx_dpo.judges.implicit_reward_judge import ImplicitRewardJudge
from mlx_dpo.judges.judge import Answer, Comparison
from mlx_dpo.judges.judge_registry import load_judge
from mlx_dpo.judges.reward_model_judge import RewardModelJudge
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(TRL / "adapter", tmp_path / "adapter"))
    shutil.copy(TRL / REWARD_HEAD_FILE, folder)
    return folder


def test_scores_are_the_rewards(folder: Path) -> None:
    judge = load_judge(str(folder), model=str(CHECKPOINT))
    assert isinstance(judge, RewardModelJudge) and judge.is_scalar
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows_of(PAIRS)]
    answers = [Answer(row["prompt"], row["completion"][0]["content"]) for row in rows]
    expected = RewardModel.load(folder, model=str(CHECKPOINT)).rewards(rows)
    scores = judge.scores([*answers, Answer("Hi", " "), Answer("Hi", "")])
    assert scores[:-2] == pytest.approx(expected.tolist(), abs=1e-6) and scores[-2:] == [None, None]
    assert judge.scores([Answer("Hi", "")]) == [None]
    better, worse = sorted((0, 1), key=lambda i: -expected[i])
    prompt = rows[better]["prompt"]
    by_prompt = judge.scores([Answer(prompt, answers[i].completion) for i in (better, worse)])
    verdict = judge.verdicts([Comparison(prompt, answers[better].completion, answers[worse].completion)])
    assert verdict == [float(by_prompt[0] > by_prompt[1])]  # type: ignore[operator]


def test_the_model_is_loaded_once_in_a_session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = RewardModel.load
    monkeypatch.setattr(RewardModel, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    judge = RewardModelJudge(str(folder), str(CHECKPOINT))
    with judge.session(), judge.session():
        first = judge.scores([Answer("Hi", "Hello.")])
        assert judge.scores([Answer("Hi", "Hello.")]) == first
    assert len(loads) == 1
    judge.scores([Answer("Hi", "Hello.")])
    assert len(loads) == 2


def test_its_identity_follows_head_and_settings(folder: Path) -> None:
    judge = RewardModelJudge(str(folder), str(CHECKPOINT))
    before = judge.identity
    (folder / "config.yaml").write_text("max_length: 77\noverlong: error\nloss: reward\n")
    after = judge.identity
    assert before != after and "77" in str(after) and "drop" in str(after)
    head = folder / REWARD_HEAD_FILE
    head.write_bytes(head.read_bytes()[:-1] + b"\x01")
    assert judge.identity != after


def test_too_long_an_answer_has_no_score_if_the_run_dropped_such_rows(folder: Path) -> None:
    (folder / "config.yaml").write_text("max_length: 40\noverlong: drop\n")
    judge = RewardModelJudge(str(folder), str(CHECKPOINT))
    scores = judge.scores([Answer("Hi", "Hello."), Answer("Hi", "Hello. " * 40)])
    assert scores[0] is not None and scores[1] is None


def test_an_adapter_without_a_head_is_judged_by_implicit_rewards() -> None:
    judge = load_judge(str(TRL / "adapter"), model=str(CHECKPOINT), adapter_rewards=lambda *_: [])
    assert isinstance(judge, ImplicitRewardJudge)
    with pytest.raises(UserError, match="not a reward model"):
        RewardModelJudge(str(TRL / "adapter"), str(CHECKPOINT))
