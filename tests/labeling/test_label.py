"""`label`: rows that train reads, counts, budgets, caches, and files that are resumed or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo import LabelSettings, UserError, label
from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import Where
from mlx_dpo.judges.function_judge import FunctionJudge, ScoringFunctionJudge
from mlx_dpo.judges.judge import Answer, Comparison, Judge
from mlx_dpo.labeling.human_agreement import label_kappa, preference_kappa
from mlx_dpo.utils.statistics import win_rate_interval
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows

LENGTH = ScoringFunctionJudge(lambda prompt, answer: len(answer), "length")
TURNS = [{"role": "user", "content": "Hello"}]
SAMPLES = [
    {
        "prompt": "One",
        "completions": ["aa", "aaaa", " ", "a"],
        "finish_reasons": ["stop", "length", "stop", "stop"],
        "token_counts": [2, 4, 1, 1],
        "seed": 7,
    },
    {"prompt": TURNS, "completions": ["bbb", "b"], "tools": [{"type": "function"}]},
    {"prompt": "Equal", "completions": ["cc", "cc"]},
    {"prompt": "Empty", "completions": ["", ""]},
]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def written(tmp_path: Path, rows: Any, judge: Judge, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    output = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    summary = label(rows, judge, output, LabelSettings(**settings))
    return rows_of(output), summary


def test_pairs(tmp_path: Path) -> None:
    rows, summary = written(tmp_path, SAMPLES, LENGTH)
    assert rows == [
        {"prompt": "One", "chosen": "aaaa", "rejected": "a", "score_chosen": 4, "score_rejected": 1},
        {"prompt": TURNS, "chosen": reply("bbb"), "rejected": reply("b"), "score_chosen": 3, "score_rejected": 1}
        | {"tools": [{"type": "function"}]},
    ]
    expected = {"prompts": 4, "completions": 7, "empty": 3, "pairs": 2, "rows": 2, "prompts_without_pair": 2}
    assert expected.items() <= summary.items() and summary["mean_characters"] == {"chosen": 3.5, "rejected": 1}
    assert (summary["longer_preferred"], summary["calls"], summary["ties"], summary["agreement"]) == (1, 6, 0, None)
    with pytest.raises(UserError, match=r"rows:2: `finish_reasons`: there are none"):
        written(tmp_path, SAMPLES, LENGTH, drop_truncated=True)
    sampled = [row | {"finish_reasons": row.get("finish_reasons", ["stop", "stop"])} for row in SAMPLES]
    dropped, counts = written(tmp_path, sampled, LENGTH, drop_truncated=True)
    assert dropped[0]["chosen"] == "aa" and (counts["truncated"], counts["completions"]) == (1, 6)
    assert [row["chosen"] for row in written(tmp_path, SAMPLES, LENGTH, margin=2.5)[0]] == ["aaaa"]
    every, _ = written(tmp_path, SAMPLES, LENGTH, pairs="all")
    assert [(row["chosen"], row["rejected"]) for row in every[:3]] == [("aaaa", "a"), ("aaaa", "aa"), ("aa", "a")]
    assert not written(tmp_path, SAMPLES, LENGTH, length_control=1)[0]


def test_other_formats(tmp_path: Path) -> None:
    scores, _ = written(tmp_path, SAMPLES, LENGTH, format="scores")
    assert scores[0] == {"prompt": "One", "completions": ["aa", "aaaa", "a"], "scores": [2, 4, 1]}
    rankings, _ = written(tmp_path, SAMPLES, LENGTH, format="rankings")
    assert rankings[0]["rankings"] == [2, 1, 3] and len(rankings) == 2
    labelled, counts = written(tmp_path, SAMPLES, LENGTH, format="labelled")
    assert [(row["completion"], row["label"]) for row in labelled] == [
        *[("aa", False), ("aaaa", True), ("a", False)],
        *[(reply("bbb"), True), (reply("b"), False)],
    ]
    assert (counts["labelled_true"], counts["labelled_false"]) == (2, 3)
    by_threshold, _ = written(tmp_path, SAMPLES, LENGTH, format="labelled", threshold=2, margin=2)
    assert [(row["completion"], row["label"]) for row in by_threshold] == [("aaaa", True)]
    for rows, kind in ((scores, Pair), (rankings, Pair), (labelled, Completion)):
        examples = [example for row in rows for example in parse_examples(row, Where("test"))]
        assert examples and all(isinstance(example, kind) and not example.warnings for example in examples)


def test_a_judge_that_compares(tmp_path: Path) -> None:
    judge = FunctionJudge(lambda _, a, b: None if "b" in a else 0.5 + 0.5 * np.sign(len(a) - len(b)), "longer")
    rows, summary = written(tmp_path, SAMPLES, judge)
    assert [(row["chosen"], row["rejected"], row["score_chosen"]) for row in rows] == [("aaaa", "a", 1)]
    assert (summary["calls"], summary["no_verdict"], summary["swayed_by_order"], summary["ties"]) == (8, 1, 0, 0)
    _, summary = written(tmp_path, SAMPLES, FunctionJudge(lambda *_: 1, "first"))
    assert (summary["rows"], summary["swayed_by_order"], summary["ties"]) == (0, 4, 4)
    assert math.isnan(summary["longer_preferred"])


def test_agreement_with_people(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "long one", "rejected": "short"},
        {"prompt": "q", "chosen": "x", "rejected": "yy"},
        {"prompt": "r", "completions": ["a", "", "aaa", "bbb"], "scores": [1, 9, 5, 3]},
        {"prompt": "s", "completions": ["a", "aaa"], "rankings": [2, 1]},
    ]
    agreement = written(tmp_path, rows, LENGTH)[1]["agreement"]["preferences"]
    values = [1, 0, 1, 1, 0.5, 1]
    assert (agreement["compared"], agreement["agreement"]) == (6, pytest.approx(4.5 / 6))
    assert agreement["interval"] == pytest.approx(list(win_rate_interval(values, groups=[0, 1, 2, 2, 2, 3])))
    assert agreement["kappa"] == pytest.approx((4 / 6 - 5 / 12) / (7 / 12))
    rows = [{"prompt": "p", "completion": "a" * n, "label": n > 2} for n in range(1, 6)]
    rows += [{"prompt": "p", "completion": "aaaaaaa", "label": False}]
    summary = written(tmp_path, rows, LENGTH, format="labelled", threshold=2.5)[1]
    people, judge = np.array([0, 0, 1, 1, 1, 0], bool), np.array([0, 0, 1, 1, 1, 1], bool)
    assert summary["agreement"]["labels"]["agreement"] == pytest.approx(5 / 6)
    assert summary["agreement"]["labels"]["kappa"] == pytest.approx(_kappa(people, judge))


def _kappa(first: np.ndarray, second: np.ndarray) -> float:
    """From the table of counts."""
    table = np.array([[np.sum((first == a) & (second == b)) for b in (False, True)] for a in (False, True)]) / len(
        first
    )
    expected = table.sum(axis=0) @ table.sum(axis=1)
    return float((np.trace(table) - expected) / (1 - expected))


def test_kappa() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.7
    second = np.where(rng.random(500) < 0.8, first, rng.random(500) < 0.4)
    assert label_kappa(first, second) == pytest.approx(_kappa(first, second))
    assert preference_kappa(np.ones(9)) == 1 and preference_kappa(np.array([1, 0])) == 0
    # in both orders: people say first, then second; of the judge, `wins` says which
    wins = rng.choice([0, 0.5, 1], 400, p=[0.2, 0.3, 0.5])
    people, judge = np.repeat([1.0, 0.0], 400), np.concatenate([wins, 1 - wins])
    expected = sum((people == value).mean() * (judge == value).mean() for value in (0, 0.5, 1))
    assert preference_kappa(wins) == pytest.approx(((people == judge).mean() - expected) / (1 - expected))


def test_an_adapter_labels(tmp_path: Path) -> None:
    from mlx_dpo.evaluation.implicit_rewards import adapter_rewards
    from mlx_dpo.judges.judge_registry import load_judge

    judge = load_judge(str(TRL / "adapter"), model=str(CHECKPOINT), adapter_rewards=adapter_rewards)
    rows, summary = written(tmp_path, str(PAIRS), judge)
    assert summary["agreement"]["preferences"]["compared"] == len(rows) == 8
    again = label(str(PAIRS), judge, tmp_path / "again.jsonl")
    assert (again["calls"], again["cache_hits"]) == (0, 16) and rows_of(tmp_path / "again.jsonl") == rows


def test_a_model_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rubric's answer is made up; the model is loaded once, and lets go of it at the end."""
    from mlx_dpo.judges import model_judge
    from mlx_dpo.judges.model_judge import ModelJudge

    loads: list[str] = []
    load = model_judge.load_model
    monkeypatch.setattr(model_judge, "load_model", lambda name: loads.append(name) or load(name))
    answers = {"long": "[[A]]", "s": "[[B]]"}
    monkeypatch.setattr(
        model_judge,
        "generate_responses",
        lambda model, renderer, prompts, sampling: [answers[p.prompt.split("ANSWER ")[1].split()[0]] for p in prompts],
    )
    judge = ModelJudge(str(CHECKPOINT), rubric="{question} ANSWER {first} OTHER {second} [[A]] [[B]]")
    rows = [{"prompt": f"Question {i}", "completions": ["s", "long"]} for i in range(40)]
    written_rows, summary = written(tmp_path, rows, judge)
    assert len(written_rows) == 40 and len(loads) == 1 and summary["calls"] == 80
    assert {row["chosen"] for row in written_rows} == {"long"}
    written(tmp_path, rows, judge)
    assert len(loads) == 1 and judge._session.model is None  # nothing to ask, nothing to load


class CountingJudge(ScoringFunctionJudge):
    """Scores by length; fails at a certain answer."""

    def __init__(self, identity: str | None) -> None:
        super().__init__(lambda prompt, answer: len(answer), "counting", None, identity)
        self.num_requests, self.fails_at = 0, ""

    def iter_scores(self, answers: Sequence[Answer]) -> Any:
        for values, answer in zip(super().iter_scores(answers), answers, strict=True):
            if answer.completion == self.fails_at:
                raise UserError("the judge is out of order", hint="Repair it.")
            self.num_requests += 1
            yield values


MANY = [{"prompt": f"Question {i}", "completions": ["a" * (1 + i % 5), "b" * (1 + i % 7), f"c{i}"]} for i in range(50)]


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    judge = CountingJudge("nothing is asked twice")
    first = label(MANY, judge, tmp_path / "a.jsonl")
    second = label(MANY, judge, tmp_path / "b.jsonl", LabelSettings(format="scores"))
    assert (first["calls"], second["calls"], second["cache_hits"], judge.num_requests) == (150, 0, 150, 150)
    again = label(MANY, judge, tmp_path / "a.jsonl")
    assert again["rows"] == first["rows"] and judge.num_requests == 150
    anonymous = CountingJudge(None)
    for name in "cd":
        label(MANY, anonymous, tmp_path / name)
    assert anonymous.num_requests == 300
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_judge_that_fails_costs_nothing_done(tmp_path: Path) -> None:
    label(MANY, CountingJudge(None), tmp_path / "whole.jsonl")
    judge = CountingJudge("fails")
    judge.fails_at = "c30"
    with pytest.raises(UserError, match="out of order") as raised:
        label(MANY, judge, tmp_path / "a.jsonl")
    assert raised.value.hint == "Repair it.\n92 verdicts of this run are kept: the same command resumes after them."
    assert judge.num_requests == 92 and 0 < len(rows_of(tmp_path / "a.jsonl")) < 30
    judge.fails_at = ""
    label(MANY, judge, tmp_path / "a.jsonl")
    assert judge.num_requests == 150
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_budget_is_kept(tmp_path: Path) -> None:
    label(MANY, CountingJudge(None), tmp_path / "whole.jsonl")
    judge, calls, remaining = CountingJudge("budget"), [], []
    for budget in (40, 2, 3, 100, 100):
        summary = label(MANY, judge, tmp_path / "a.jsonl", max_calls=budget)
        calls.append(summary["calls"])
        remaining.append(summary["remaining"])
    assert calls == [39, 0, 3, 99, 9] and remaining == [37, 37, 36, 3, 0]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    record = json.loads((tmp_path / "a.jsonl.label.json").read_text())
    assert record["summary"]["prompts"] == 50
    assert record["summary"] == json.loads((tmp_path / "whole.jsonl.label.json").read_text())["summary"]


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    label(MANY, LENGTH, output)
    before = output.read_bytes()
    for data, judge, settings, message in (
        (MANY, LENGTH, LabelSettings(margin=1), "written with another `margin`"),
        (MANY[:9], LENGTH, None, "another `data`"),
        (MANY, CountingJudge(None), None, "another `judge`"),
    ):
        with pytest.raises(UserError, match=message):
            label(data, judge, output, settings)
    with pytest.raises(UserError, match="has not written it"):
        label(MANY, LENGTH, write_rows(tmp_path / "mine.jsonl", [{}]))
    assert output.read_bytes() == before
    lines = before.splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    with pytest.raises(UserError, match="other rows than these settings give"):
        label(MANY, LENGTH, output)
    output.write_bytes(before + lines[-1])
    with pytest.raises(UserError, match="more rows"):
        label(MANY, LENGTH, output)
    output.unlink()
    assert label(MANY, LENGTH, output, LabelSettings(margin=1))["rows"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a", "b"]}, "prompt"),
        ({"prompt": "p", "completions": ["a", 3]}, r"completions\[1\]"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1]}, "value for each of the 2 completions"),
        ({"prompt": "p", "completions": ["a", "b"], "finish_reasons": "stop"}, "value for each"),
        ({"prompt": "", "completions": ["", ""]}, "empty"),
    ],
)
def test_bad_rows_are_found_before_the_judge_is_asked(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    judge = CountingJudge(None)
    with pytest.raises(UserError, match=message) as raised:
        label(str(write_rows(tmp_path / "rows.jsonl", [*MANY, row])), judge, tmp_path / "a.jsonl")
    assert raised.value.where and raised.value.where.line == 51
    assert not judge.num_requests and not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "pears"}, "must be one of pairs, scores"),
        ({"top_k": 2}, "--pairs top-k only"),
        ({"margin": -1.0}, "at least 0"),
        ({"length_control": float("nan")}, "at least 0"),
        ({"format": "scores", "margin": 1.0}, "does not apply to --format scores"),
        ({"threshold": 1.0}, "does not apply to --format pairs"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelSettings(**settings)


def test_a_threshold_needs_scores(tmp_path: Path) -> None:
    settings = LabelSettings(format="labelled", threshold=0.5)
    with pytest.raises(UserError, match="only compares"):
        label(MANY, FunctionJudge(lambda *_: 1, "first"), tmp_path / "a.jsonl", settings)


def test_comparisons_of_a_prompt_are_apart_from_those_of_another(tmp_path: Path) -> None:
    compared: list[Comparison] = []

    class Seeing(FunctionJudge):
        def iter_verdicts(self, comparisons: Sequence[Comparison]) -> Any:
            compared.extend(comparisons)
            return super().iter_verdicts(comparisons)

    rows = [{"prompt": prompt, "completions": ["a", "b"]} for prompt in ("p", "q", "p")]
    summary = label(rows, Seeing(lambda p, a, b: float((p == "p") == (a < b)), "by prompt"), tmp_path / "a.jsonl")
    assert len(compared) == summary["calls"] == 4
    assert [row["chosen"] for row in rows_of(tmp_path / "a.jsonl")] == ["a", "b", "a"]
