"""Implicit rewards of whole files, against `evaluate`, against mlx-lm's log-probs, and after interruptions."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import EncodedExample
from mlx_dpo.data.examples import Candidates
from mlx_dpo.demo import load_pairs
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.evaluation.evaluator import evaluate
from mlx_dpo.evaluation.implicit_rewards import score
from mlx_dpo.evaluation.measuring import measure
from mlx_dpo.evaluation.row_batches import make_row_batch
from mlx_dpo.forward.activation_memory import BatchCost
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.forward.network import Network
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.plain import completion_ids, logp

ADAPTER = TRL / "adapter"
CONFIG = TrainConfig(model=str(CHECKPOINT), data=str(PAIRS))
RANKED = [
    {"prompt": "Name three colours.", "completions": ["Red, green, blue.", "No.", "Red, and red."], "id": 1},
    {"prompt": "Name three colours.", "completions": ["Green."], "id": 2},
    {"prompt": "What is it?", "completions": ["It is what it is, and it is good.", "A."], "scores": [1, 0], "id": 3},
]


def scored(file: Path, config: TrainConfig = CONFIG, **how: Any) -> list[dict[str, Any]]:
    score(config, file, adapter_path=ADAPTER, **how)
    return rows_of(file)


@pytest.mark.parametrize("reference", ["base", "none", str(CHECKPOINT)])
def test_rewards_of_pairs_are_evaluates_to_the_bit(tmp_path: Path, reference: str) -> None:
    config = CONFIG.replace(reference=reference, beta=0.3, batch_size=3)
    summary = score(config, tmp_path / "s.jsonl", adapter_path=ADAPTER)
    expected = evaluate(config, adapter_path=ADAPTER)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert summary[name] == expected[name]
        low, high = summary["intervals"][name]
        assert low < summary[name] < high
    lines = rows_of(tmp_path / "s.jsonl")
    assert [{k: v for k, v in line.items() if k not in ("rewards", "scorer")} for line in lines] == rows_of(PAIRS)
    chosen, rejected = np.array([line["rewards"] for line in lines]).T
    assert (chosen > rejected).mean() == expected["rewards/accuracies"]


def test_rewards_of_single_completions_are_evaluates(tmp_path: Path) -> None:
    config = CONFIG.replace(data=str(TRL / "labelled.jsonl"))
    lines = scored(tmp_path / "s.jsonl", config)
    expected = evaluate(config.replace(loss="kto"), adapter_path=ADAPTER)
    for label, name in ((True, "rewards/chosen"), (False, "rewards/rejected")):
        rewards = [line["rewards"][0] for line in lines if line["label"] is label]
        assert np.mean(rewards) == pytest.approx(expected[name], abs=1e-12)


def test_columns_under_other_names_stay_as_they_are(tmp_path: Path) -> None:
    names = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    rows = [{names[k]: v for k, v in row.items()} for row in rows_of(PAIRS)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    renamed = CONFIG.replace(data=str(file), prompt_column="q", chosen_column="yes", rejected_column="no")
    lines = scored(tmp_path / "s.jsonl", renamed)
    assert [{name: line[name] for name in names.values()} for line in lines] == rows
    assert [line["rewards"] for line in lines] == [line["rewards"] for line in scored(tmp_path / "plain.jsonl")]


def test_rewards_of_completions_are_evaluates(tmp_path: Path) -> None:
    """There they are pairs, and are padded otherwise."""
    rows = [{**row, "scores": list(range(len(row["completions"])))} for row in RANKED if len(row["completions"]) > 1]
    expected = evaluate(CONFIG, adapter_path=ADAPTER, rows=rows)
    rewards = [line["rewards"] for line in scored(tmp_path / "s.jsonl", rows=rows)]
    chosen = [row[i] for row in rewards for i in range(len(row)) for _ in range(i)]
    assert np.mean(chosen) == pytest.approx(expected["rewards/chosen"], abs=1e-6)


@pytest.mark.parametrize("length_normalise", [False, True])
def test_rewards_match_mlx_lms_log_probs(tmp_path: Path, length_normalise: bool) -> None:
    policy, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=str(ADAPTER))
    base, _ = mlx_lm.load(str(CHECKPOINT))
    rows = [*RANKED, *rows_of(TRL / "labelled.jsonl")[:2]]
    lines = scored(tmp_path / "s.jsonl", rows=rows, length_normalise=length_normalise)
    assert [{**row, **line} for row, line in zip(rows, lines, strict=True)] == lines
    for row, line in zip(rows, lines, strict=True):
        answers = row.get("completions") or [row["completion"]]
        for answer, reward in zip(answers, line["rewards"], strict=True):
            ids = completion_ids(tokenizer, row["prompt"], answer)
            expected = 0.1 * (logp(policy, *ids) - logp(base, *ids)) / (len(ids[1]) if length_normalise else 1)
            assert reward == pytest.approx(expected, abs=2e-5)


def test_the_best_of_n_and_the_ranking(tmp_path: Path) -> None:
    for row, line in zip(RANKED, scored(tmp_path / "s.jsonl", rows=RANKED), strict=True):
        rewards = [line["rewards"][i] for i in line["ranking"]]
        assert rewards == sorted(line["rewards"], reverse=True)
        assert line["best"] == row["completions"][line["rewards"].index(max(line["rewards"]))]
        assert sorted(line["ranking"]) == list(range(len(row["completions"])))


def test_a_rewardbench_file_by_subset(tmp_path: Path) -> None:
    extra = {"chosen_model": "a", "rejected_model": "b"}
    rows = [{**row, **extra, "subset": f"s{i % 3}", "id": i} for i, row in enumerate(rows_of(PAIRS))]
    rows.append({"prompt": "Hi", "chosen": ["Hello!", "Hi!"], "rejected": ["No.", "Go."], "subset": None, "id": 9})
    data = write_rows(tmp_path / "rewardbench.jsonl", rows)
    summary = score(CONFIG.replace(data=str(data)), tmp_path / "s.jsonl", adapter_path=ADAPTER, by=["subset"])
    lines = rows_of(tmp_path / "s.jsonl")
    assert summary["rows"] == 9 and set(summary["by"]["subset"]) == {"s0", "s1", "s2", "(none)"}
    for subset, counted in summary["by"]["subset"].items():
        of_subset = [line["rewards"] for line in lines if (line["subset"] or "(none)") == subset]
        right = [min(r[: len(r) // 2]) > max(r[len(r) // 2 :]) for r in of_subset]
        assert (counted["rows"], counted["rewards/accuracies"]) == (len(of_subset), np.mean(right))
    with pytest.raises(UserError, match=r"no row has the column 'sort'.*\n.*subset"):
        score(CONFIG.replace(data=str(data)), tmp_path / "t.jsonl", by=["sort"])


def test_what_is_too_long_is_cut_dropped_or_refused(tmp_path: Path) -> None:
    rows = [RANKED[1], {"prompt": "Tell me. " * 40, "completions": ["A.", "B, and then some more."]}, RANKED[2]]
    short = CONFIG.replace(max_length=64)
    assert all(line["rewards"] for line in scored(tmp_path / "cut.jsonl", short, rows=rows))
    lines = scored(tmp_path / "drop.jsonl", short.replace(overlong="drop"), rows=rows)
    assert lines[1]["rewards"] is None and lines[2]["rewards"] and "best" not in lines[1]
    with pytest.raises(RowError, match="rows:2: too long"):
        scored(tmp_path / "error.jsonl", short.replace(overlong="error"), rows=rows)


# Resuming


MANY = [{**row, "n": i % 7} for i, row in enumerate(load_pairs("train")[:90])]
SMALL = CONFIG.replace(batch_size=4, beta=0.2)


def test_a_killed_run_resumes_to_the_same_file(tmp_path: Path) -> None:
    data, whole, killed = write_rows(tmp_path / "data.jsonl", MANY), tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    config = SMALL.replace(data=str(data))
    summary = score(config, whole, adapter_path=ADAPTER, by=["n"])
    flags = ("--adapter-path", ADAPTER, "--batch-size", 4, "--beta", 0.2, "--output", killed)
    command = [sys.executable, "-m", "mlx_dpo", "score", "--model", CHECKPOINT, "--data", data, *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not killed.exists() or killed.stat().st_size < 2000):
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = killed.read_bytes().count(b"\n")
    assert 0 < done < len(MANY), "it was killed in the middle"
    seen: list[int] = []
    assert score(config, killed, adapter_path=ADAPTER, by=["n"], progress=lambda n, _: seen.append(n)) == summary
    assert killed.read_bytes() == whole.read_bytes()
    assert seen[:2] == [done // 4 * 4, done // 4 * 4 + 4], "what was there whole was not computed again"
    assert seen[-1] == len(MANY)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.31, 0.77, 0.999])
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(tmp_path: Path, share: float) -> None:
    file = tmp_path / "s.jsonl"
    summary = score(SMALL, file, adapter_path=ADAPTER, rows=MANY[:22])
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert score(SMALL, file, adapter_path=ADAPTER, rows=MANY[:22]) == summary
    assert file.read_bytes() == content


def test_a_complete_file_is_not_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    first, content = score(CONFIG, file, adapter_path=ADAPTER), file.read_bytes()
    seen: list[int] = []
    again = score(CONFIG, file, adapter_path=ADAPTER, progress=lambda done, _: seen.append(done))
    assert (again, file.read_bytes(), seen) == (first, content, [content.count(b"\n")])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0.2}, "s.jsonl:1: this line was scored with another model, adapter, reference or setting"),
        ({"batch_size": 2}, "another model, adapter, reference or setting"),
        ({"reference": "none"}, "another model, adapter, reference or setting"),
        ({"data": str(TRL / "raw_pairs.jsonl")}, "s.jsonl:1: this line has another row"),
    ],
)
def test_another_scorers_file_stays_as_it_is(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = tmp_path / "s.jsonl"
    score(CONFIG, file, adapter_path=ADAPTER)
    content = file.read_bytes()
    with pytest.raises(UserError, match=message):
        score(CONFIG.replace(**changed), file, adapter_path=ADAPTER)
    with pytest.raises(UserError, match="another model"):
        score(CONFIG, file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"{}", b'{"a": 1}\n', b"notes\n", PAIRS.read_bytes()])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"mine.jsonl:1: .*\n.*--output"):
        score(CONFIG, file, adapter_path=ADAPTER)
    assert file.read_bytes() == content


# Costs


def _row(prompt: int, completions: list[int]) -> EncodedExample:
    """A row of random tokens, by the lengths of its prompt and completions."""
    rng = random.Random(0)
    ids = [tuple(rng.randrange(9, 200) for _ in range(n)) for n in (prompt, *completions)]
    return EncodedExample(ids[0], tuple(ids[1:]), Candidates({}, "", ()))


def _num_tokens(row: EncodedExample, memory_model: MemoryModel) -> int:
    batch = make_row_batch({0: row}, memory_model)
    return sum(BatchCost.from_batch(micro, memory_model.network.sharing).tokens for micro in batch.micro_batches)


def _one_completion_each(row: EncodedExample) -> list[EncodedExample]:
    return [replace(row, completions=(ids,)) for ids in row.completions]


def test_eight_answers_cost_a_quarter_of_scoring_them_one_at_a_time() -> None:
    memory_model, row = MemoryModel(Network.from_model(load_model(str(CHECKPOINT)).model)), _row(512, [64] * 8)
    one_at_a_time = sum(_num_tokens(single, memory_model) for single in _one_completion_each(row))
    assert one_at_a_time == 8 * (511 + 64)
    assert _num_tokens(row, memory_model) <= one_at_a_time / 4


@pytest.mark.parametrize("lengths", [[7] * 5, [90, 3, 40, 1, 64, 64, 2], [700] * 3, [30] * 60])
def test_a_row_in_chunks_is_as_answers_by_themselves(lengths: list[int]) -> None:
    network = Network.from_model(load_model(str(CHECKPOINT)).model)
    memory_model, row = MemoryModel(network), _row(20, lengths)
    batch = make_row_batch({5: _row(30, [5, 6]), 3: None, 7: row}, memory_model)
    largest = max(BatchCost.from_batch(micro, network.sharing).tokens for micro in batch.micro_batches)
    assert largest <= 2 * max(576, max(lengths)) + 20
    ((pair, chunked),) = (sorted(rows, key=lambda row: row.index) for rows in measure([batch], network))
    assert (pair.index, chunked.index) == (5, 7) and len(pair.logps) == 2
    assert chunked.lengths.tolist() == lengths
    alone = make_row_batch(dict(enumerate(_one_completion_each(row))), memory_model)
    (singles,) = measure([alone], network)
    expected = np.concatenate([single.logps for single in sorted(singles, key=lambda single: single.index)])
    np.testing.assert_allclose(chunked.logps, expected, rtol=1e-5, atol=1e-4)
