"""Judges by themselves: a function, a chat model, an adapter's implicit rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.examples import Prompt
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation import implicit_rewards
from mlx_dpo.evaluation.implicit_rewards import adapter_rewards, score
from mlx_dpo.judges import model_judge
from mlx_dpo.judges.endpoint_judge import EndpointJudge
from mlx_dpo.judges.function_judge import FunctionJudge
from mlx_dpo.judges.implicit_reward_judge import ImplicitRewardJudge
from mlx_dpo.judges.judge import Answer, Comparison, JudgeSpec
from mlx_dpo.judges.judge_registry import load_judge
from mlx_dpo.judges.model_judge import ModelJudge
from mlx_dpo.judges.rubric_prompt import judge_messages, parse_verdict, read_rubric
from tests.conftest import CHECKPOINT, TRL, rows_of

COMPARISONS = [Comparison("What is it?", "It is good.", "A."), Comparison("Hi", "Go away, please, now.", "Hello!")]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A is right. [[A]]", 1),
        ("[[B]]", 0),
        ("Both are fine: [[C]].", 0.5),
        ("[[A]] as I said: [[A]]", 1),
        ("<think>[[A]]? no</think> [[B]]", 0),
        ("[[A]] or [[B]]", None),
        ("A", None),
        ("[A]", None),
        ("[[a]]", None),
        ("[[A, B]]", None),
        ("<think>[[A]] and still thinking", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text: str, verdict: float | None) -> None:
    assert parse_verdict(text) == verdict


def test_the_prompt_shows_both_answers_in_order() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 = {x}"}]
    (message,) = judge_messages(Comparison(turns, "four {}", "five"))
    text = message["content"]
    assert "system: Be brief.\n\nuser: 2 + 2 = {x}" in text
    assert text.index("assistant A's answer]\nfour {}\n") < text.index("assistant B's answer]\nfive\n")


def test_a_model_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts_seen: list[Any] = []

    def generate(model: Any, renderer: Any, prompts: list[Any], sampling: Any) -> list[str]:
        prompts_seen.extend(prompts)
        return ["[[A]]", "Hm."]

    monkeypatch.setattr(model_judge, "generate_responses", generate)
    assert ModelJudge(str(CHECKPOINT)).verdicts(COMPARISONS) == [1, None]
    assert prompts_seen == [Prompt(judge_messages(comparison)[0]["content"]) for comparison in COMPARISONS]


def test_a_model_that_talks_nonsense_gives_no_verdict() -> None:
    assert ModelJudge(str(CHECKPOINT), max_tokens=8).verdicts(COMPARISONS) == [None, None]


def test_an_adapter_prefers_what_it_rewards_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": pair.prompt, "completions": [pair.first, pair.second]} for pair in COMPARISONS]
    score(TrainConfig(model=str(CHECKPOINT)), tmp_path / "s.jsonl", adapter_path=TRL / "adapter", rows=rows)
    expected = [float(line["rewards"][0] > line["rewards"][1]) for line in rows_of(tmp_path / "s.jsonl")]
    judge = ImplicitRewardJudge(TRL / "adapter", adapter_rewards, str(CHECKPOINT))
    assert judge.verdicts(COMPARISONS) == expected and not judge.order_sensitive
    assert judge.verdicts([pair.swapped for pair in COMPARISONS]) == [1 - verdict for verdict in expected]
    assert judge.verdicts([Comparison("Hi", "", "Hello!"), COMPARISONS[0], Comparison("Hi", "a", "a")]) == [
        None,
        expected[0],
        0.5,
    ]
    answers = [Answer(pair.prompt, text) for pair in COMPARISONS for text in (pair.first, "", pair.second, pair.first)]
    scores = judge.scores(answers)
    rewards = [reward for line in rows_of(tmp_path / "s.jsonl") for reward in line["rewards"]]
    assert [scores[i] for i in (0, 2, 4, 6)] == pytest.approx(rewards, abs=1e-5)
    assert scores[1] is None and scores[3] == scores[0]
    with judge.session(), monkeypatch.context() as patch:
        patch.setattr(implicit_rewards, "load_model", None)  # it is in memory
        assert judge.scores(answers) == judge.scores(answers) == scores
    assert judge.scores(answers) == scores


def test_a_function_judges(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def longer(prompt, first, second):\n    return None if not prompt else len(first) > len(second)\n")
    judge = load_judge(f"{file}:longer")
    assert judge.verdicts([*COMPARISONS, Comparison("", "a", "b")]) == [1, 1, None]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def judge(p, a, b): return 2", "returns 2, not a number from 0 to 1"),
        ("def judge(p, a, b): return float('nan')", "returns nan"),
        ("def judge(p, a, b): return 'A'", "judge fails: ValueError"),
        ("def judge(p): return 1", r"judge\(p\) takes neither \(prompt, first, second\) nor \(prompt, answer\)"),
        ("def judge(p, a, b, c): return 1", "takes neither"),
        ("def judge(p, a, *, scale): return 1", "takes neither"),
        ("def judge(p, a): return 'A'", "judge fails: ValueError"),
        ("def judge(p, a): return float('inf')", "returns inf, not a finite number"),
        ("def judge(p, a, b): return 1 / 0", "judge fails: ZeroDivisionError"),
        ("judge = 3", "there is no function 'judge'"),
        ("import nowhere_to_be_found", "the file can't be run"),
    ],
)
def test_a_function_that_is_no_judge_is_reported(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(UserError, match=message) as raised:
        FunctionJudge.from_spec(JudgeSpec(f"{file}:judge")).verdicts(COMPARISONS)
    assert raised.value.where and raised.value.where.file == str(file)


@pytest.mark.parametrize(
    ("arguments", "is_scalar"),
    [("p, a", True), ("p, a, b", False), ("*texts", False), ("p, a, scale=2.0", True), ("p, a=1, b=2", False)],
)
def test_what_a_function_takes_decides_what_it_is(tmp_path: Path, arguments: str, is_scalar: bool) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def judge({arguments}): return 1")
    assert load_judge(f"{file}:judge").is_scalar == is_scalar


def test_a_function_scores(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def length(prompt, answer):\n    return len(answer) if answer else None\n")
    judge = load_judge(f"{file}:length")
    answers = [Answer("p", text) for text in ("abc", "", "ab")]
    assert judge.is_scalar and not judge.order_sensitive and judge.scores(answers) == [3, None, 2]
    pairs = [("abc", "ab"), ("ab", "abc"), ("ab", "cd"), ("", "a"), ("", "")]
    assert judge.verdicts([Comparison("p", *pair) for pair in pairs]) == [1, 0, 0.5, None, 0.5]


def test_a_judges_identity_follows_from_what_it_depends_on(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    identities = set()
    for code in ("def judge(p, a): return 1", "def judge(p, a): return 2"):
        file.write_text(code)
        identities |= {load_judge(f"{file}:judge").identity for _ in range(2)}
    for rubric in (None, "{question} {first} {second}"):
        identities |= {load_judge(str(CHECKPOINT), rubric=rubric).identity}
        identities |= {load_judge("https://me:secret@example.org/v1?key=k", model="m", rubric=rubric).identity}
    identities |= {load_judge(str(TRL / "adapter"), model=str(CHECKPOINT), adapter_rewards=adapter_rewards).identity}
    assert len(identities) == 7 and "secret" not in str(identities) and None not in identities
    assert FunctionJudge(lambda *_: 1, "lambda").identity is None


def test_a_rubric_replaces_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text('As JSON {"a": 1}: {question} / {first} / {second}? [[A]] or [[B]]')
    rubric = read_rubric(file)
    (message,) = judge_messages(Comparison("Q {first}", "{second}", "no"), rubric)
    assert message["content"] == 'As JSON {"a": 1}: Q {first} / {second} / no? [[A]] or [[B]]'
    for text, message_part in (("{question} {first} [[A]]", r"{second} or \[\[B\]\]"), (None, "can't be read")):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(UserError, match=message_part):
            read_rubric(file)
    with pytest.raises(UserError, match="takes no rubric"):
        load_judge(str(TRL / "adapter"), adapter_rewards=adapter_rewards, rubric=rubric)


def test_a_session_keeps_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(name: str) -> Any:
        loads.append(name)
        return original(name)

    original = model_judge.load_model
    monkeypatch.setattr(model_judge, "load_model", load)
    monkeypatch.setattr(model_judge, "generate_responses", lambda model, renderer, prompts, sampling: ["[[A]]"])
    judge = ModelJudge(str(CHECKPOINT))
    with judge.session():
        assert judge.verdicts(COMPARISONS[:1]) == judge.verdicts(COMPARISONS[:1]) == [1]
    assert len(loads) == 1
    judge.verdicts(COMPARISONS[:1])
    assert len(loads) == 2


def test_the_judge_follows_from_the_text(tmp_path: Path) -> None:
    assert isinstance(
        load_judge(str(TRL / "adapter"), model=str(CHECKPOINT), adapter_rewards=adapter_rewards), ImplicitRewardJudge
    )
    assert isinstance(load_judge(str(CHECKPOINT)), ModelJudge)
    assert isinstance(load_judge("https://example.org/v1", model="m"), EndpointJudge)
    for text, message in (
        (str(tmp_path / "mine.py:judge"), "no such file"),
        (str(tmp_path), "not a model folder"),
        ("gpt-4", "no such folder"),
        ("http://127.0.0.1:1/v1", "--judge-model is required for an endpoint"),
        (str(TRL / "adapter"), "which model the adapter is for"),
    ):
        with pytest.raises(UserError, match=message):
            load_judge(text, adapter_rewards=adapter_rewards)
