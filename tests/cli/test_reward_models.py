"""The commands on a reward model: those that use it, those that refuse it, and what its page and card say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_dpo import TrainConfig, train
from mlx_dpo.adapters.reward_head import read_reward_head
from mlx_dpo.export.card.model_card import write_card
from mlx_dpo.reporting.html_report import write_report
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.result_summary import run_summary
from mlx_dpo.reporting.run_recorder import RunRecorder
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.listener import Listeners
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows

Cli = Any
MODEL = ("--model", CHECKPOINT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "run"
    settings: dict[str, Any] = {"model": str(CHECKPOINT), "data": str(PAIRS), "valid_data": str(PAIRS), "batch_size": 8}
    settings |= {"loss": "reward", "iters": 20, "learning_rate": 3e-3, "steps_per_report": 5, "steps_per_eval": 10}
    listener = Listeners(MetricsLog(), RunRecorder(num_samples=4))
    train(TrainConfig(adapter_path=str(folder), **settings), listener=listener)
    return folder


@pytest.fixture
def categories(tmp_path: Path) -> Path:
    rows = [{**row, "category": "odd" if i % 2 else "even"} for i, row in enumerate(rows_of(PAIRS))]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def test_evaluate_by_category(mlx_dpo: Cli, run: Path, categories: Path) -> None:
    ran = mlx_dpo("evaluate", *MODEL, "--adapter-path", run, "--data", categories, "--by", "category", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["rewards/accuracies"] == 1 and result["pairs"] == 8 and result["min_reward"] < result["max_reward"]
    assert {label: group["rewards/accuracies"] for label, group in result["by"]["category"].items()} == {
        "even": 1,
        "odd": 1,
    }
    assert not any("logps" in name for name in result) and "min_reward" not in result["intervals"]
    table = mlx_dpo("evaluate", *MODEL, "--adapter-path", run, "--data", categories, "--by", "category")
    assert "rewards/accuracies" in table.out and "even" in table.out


def test_checkpoints_are_compared(mlx_dpo: Cli, run: Path) -> None:
    folders = ("--adapter-path", run / "checkpoints", "--adapter-path", run)
    ran = mlx_dpo("evaluate", *MODEL, *folders, "--data", PAIRS, "--json")
    assert ran.code == 0, ran.err
    adapters = json.loads(ran.out)["adapters"]
    assert len(adapters) == 2 and "rewards/margins" in adapters[1]["against_first"]


def test_score_adds_rewards_and_the_best(mlx_dpo: Cli, run: Path, tmp_path: Path) -> None:
    roles = ("rejected", "chosen")
    rows = [
        {"prompt": row["prompt"], "completions": [row[role][0]["content"] for role in roles]} for row in rows_of(PAIRS)
    ]
    data, output = write_rows(tmp_path / "answers.jsonl", rows), tmp_path / "scores.jsonl"
    ran = mlx_dpo("score", *MODEL, "--adapter-path", run, "--data", data, "--output", output, "--json")
    assert ran.code == 0, ran.err
    scored, whole = rows_of(output), output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert mlx_dpo("score", *MODEL, "--adapter-path", run, "--data", data, "--output", output).code == 0
    assert output.read_bytes() == whole
    assert all(row["ranking"] == [1, 0] and row["best"] == row["completions"][1] for row in scored)
    expected = mlx_dpo("evaluate", *MODEL, "--adapter-path", run, "--data", PAIRS, "--json")
    chosen = np.mean([row["rewards"][1] for row in scored])
    assert chosen == pytest.approx(json.loads(expected.out)["rewards/chosen"], abs=1e-5)
    for flags, words in (
        (("--beta", 0.3), "does not use it"),
        (("--reference", TRL), "no reference"),
        (("--length-normalise",), "reward model"),
    ):
        refused = mlx_dpo(
            "score", *MODEL, "--adapter-path", run, "--data", data, "--output", tmp_path / "no.jsonl", *flags
        )
        assert refused.code == 2 and words in refused.err, refused.err
    assert not (tmp_path / "no.jsonl").exists()


def test_label_and_its_judge(mlx_dpo: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    roles = ("rejected", "chosen")
    rows = [
        {"prompt": row["prompt"], "completions": [row[role][0]["content"] for role in roles]} for row in rows_of(PAIRS)
    ]
    output = tmp_path / "pairs.jsonl"
    ran = mlx_dpo("label", write_rows(tmp_path / "answers.jsonl", rows), "--judge", run, "--output", output)
    assert ran.code == 0, ran.err
    assert [row["chosen"][0]["content"] for row in rows_of(output)] == [row["completions"][1] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fuse", "--save-path", "OUT"), "have no place for its head"),
        (("export", "--format", "gguf-lora", "OUT.gguf"), "have no place for its head"),
        (("compare", "--prompt", "Hi"), "scores completions and writes none"),
        (("evaluate", "--data", PAIRS, "--generate", 2, "--judge", CHECKPOINT), "writes no completions"),
        (("evaluate", "--data", PAIRS, "--adapter-path", TRL / "adapter"), "can't be compared with a policy"),
        (("evaluate", "--data", PAIRS, "--loss", "ipo"), "reward model, which the loss 'ipo' is not for"),
        (("evaluate", "--data", PAIRS, "--reference", "base"), "no reference"),
    ],
)
def test_what_can_not_work_is_one_sentence(
    mlx_dpo: Cli, run: Path, tmp_path: Path, arguments: tuple[Any, ...], words: str
) -> None:
    if arguments[0] == "export":
        pytest.importorskip("gguf")
    command, *rest = (tmp_path / value if str(value).startswith("OUT") else value for value in arguments)
    ran = mlx_dpo(command, *MODEL, "--adapter-path", run, *rest)
    assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err, ran.err
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_a_head_is_no_reward_model(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("evaluate", *MODEL, "--adapter-path", TRL / "adapter", "--data", PAIRS, "--loss", "reward")
    assert ran.code == 2 and "not a reward model" in ran.err
    ran = mlx_dpo("evaluate", *MODEL, "--data", PAIRS, "--loss", "reward")
    assert ran.code == 2 and "needs a reward model" in ran.err


def test_the_peft_form_has_the_head(mlx_dpo: Cli, run: Path, tmp_path: Path) -> None:
    """tests/export/test_peft_live.py compares the rewards with those in transformers."""
    ran = mlx_dpo("export", "--format", "peft", *MODEL, "--adapter-path", run, tmp_path / "peft")
    assert ran.code == 0, ran.err
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    head = load_file(tmp_path / "peft" / "adapter_model.safetensors")["base_model.model.score.weight"]
    np.testing.assert_array_equal(head, np.array(read_reward_head(run)))


def test_the_page_says_nothing_of_policies(run: Path) -> None:
    statistics = RunStatistics.read(run)
    assert statistics.samples == []
    assert statistics.is_reward_model and all(
        record.logps is None and record.kl is None for record in statistics.eval_records
    )
    summary = run_summary(statistics)
    assert [change["name"] for change in summary["held_out"]] == ["rewards/accuracies", "rewards/margins"]
    assert "the reward model ranks 100%" in summary["verdict"]
    page = write_report(run).read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    shown, settings = body.split("<h2>Config", 1)
    for words in ("policy", "beta x nats", "KL", "likel", "log-prob", "Samples", "--beta", "Both rewards"):
        assert words not in shown, words
    assert "Most wrong held-out examples" in shown and "reward" in settings


def test_the_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    card = write_card(run).read_text(encoding="utf-8")
    assert "A reward model, which scores completions and writes none: a LoRA adapter for" in card
    assert "pipeline_tag: text-classification" in card and "- reward-model" in card
    assert "RewardModel.load" in card and "AutoModelForSequenceClassification" in card
    for words in ("mlx_lm.generate", "AutoModelForCausalLM", "log-ratio", "mlx-dpo fuse", "beta None"):
        assert words not in card, words
