"""The commands on good input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import read_yaml
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.marks import mostly_slow

Cli = Callable[..., CommandResult]


def test_train_prints_a_table_and_what_to_do_next(mlx_dpo: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", run)
    ran = mlx_dpo("train", *flags, "--supervise", "--iters", 4, "--learning-rate", "1e-3", "--steps-per-report", 1)
    assert ran.code == 0, ran.err
    assert "reward accuracy" in ran.out and "mlx-dpo compare" in ran.out and "mlx_lm.generate" in ran.out
    assert "step 4/4" in ran.err and "held out at step 4" in ran.err
    card = (run / "README.md").read_text()
    assert card.startswith("---\n") and "| reward margin | 0.0000 |" in card
    page = (run / "report.html").read_text()
    assert "the policy prefers the chosen completions" in page


def test_train_json(mlx_dpo: Cli, tmp_path: Path) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", tmp_path / "run")
    ran = mlx_dpo("train", *flags, "--iters", 1, "--json")
    result = json.loads(ran.out)
    assert result["steps"] == 1 and result["before"]["rewards/margins"] == 0


def test_flags_win_over_the_file(mlx_dpo: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {CHECKPOINT}\ndata: {PAIRS}\nlearning-rate: 1e-4\niters: 1\nrank: 2\n")
    assert mlx_dpo("train", "-c", file, "--rank", 3, "--adapter-path", tmp_path / "run").code == 0
    resolved = read_yaml(tmp_path / "run" / "config.yaml")
    assert (resolved["rank"], resolved["learning_rate"], resolved["iters"]) == (3, 1e-4, 1)
    assert set(resolved) == set(TrainConfig().to_mapping())


def test_evaluate_json(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("evaluate", "--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", TRL / "adapter", "--json")
    measured = json.loads(ran.out)
    first = json.loads((TRL / "reference.json").read_text())["runs"]["sigmoid"]["steps"][0]
    assert measured["pairs"] == 8
    for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert measured[name] == pytest.approx(first[name], abs=1e-4)
    assert "8 pairs" in mlx_dpo("evaluate", "--model", CHECKPOINT, "--data", PAIRS).out


@pytest.mark.parametrize("temperature", [0, 1])
def test_compare(mlx_dpo: Cli, tmp_path: Path, temperature: int) -> None:
    flags = ("--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--max-tokens", 8, "--temp", temperature)
    ran = mlx_dpo("compare", *flags, "--prompts", PAIRS, "--num-prompts", 3, "--json")
    answers = json.loads(ran.out)["answers"]
    assert len(answers) == 3 and any(a["base"] != a["tuned"] for a in answers)
    assert json.loads(mlx_dpo("compare", *flags, "--prompts", PAIRS, "--num-prompts", 3, "--json").out) == {
        "answers": answers
    }
    (tmp_path / "asked.txt").write_text("Hi!\n\nWho are you?\n")
    table = mlx_dpo("compare", *flags, "--prompts", tmp_path / "asked.txt").out
    assert "Who are you?" in table and "tuned" in table


def test_the_adapter_names_its_model(mlx_dpo: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert mlx_dpo("train", "--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", run, "--iters", 1).code == 0
    assert mlx_dpo("compare", "--adapter-path", run, "--prompt", "Hi", "--max-tokens", 2).code == 0
    ran = mlx_dpo("fuse", "--adapter-path", TRL / "adapter", "--save-path", tmp_path / "fused")
    assert ran.code == 2 and "which model" in ran.err and "--model" in ran.err


def test_compare_is_mlx_lms_greedy_answer(mlx_dpo: Cli) -> None:
    flags = ("--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--max-tokens", 8)
    ran = mlx_dpo("compare", *flags, "--prompt", "What is it?", "--json")
    model, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is it?"}], add_generation_prompt=True)
    expected = mlx_lm.generate(model, tokenizer, ids, max_tokens=8)
    assert json.loads(ran.out)["answers"][0]["tuned"] == expected.strip()


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("bits", mostly_slow(["4bit", "float32", "8bit"], 3))
def test_fuse(mlx_dpo: Cli, tmp_path: Path, bits: str, dequantize: bool) -> None:
    from tests.forward.test_architectures import QUANTIZATIONS, make_model

    model, run, fused = make_model(tmp_path / "model", "qwen3", QUANTIZATIONS[bits]), tmp_path / "run", tmp_path / "f"
    train = ("train", "--model", model, "--data", PAIRS, "--adapter-path", run, "--iters", 5)
    assert mlx_dpo(*train, "--learning-rate", "1e-3").code == 0
    flags = ("--model", model, "--adapter-path", run, "--save-path", fused)
    ran = mlx_dpo("fuse", *flags, *(["--dequantize"] if dequantize else ["--bits", "same"]))
    assert ran.code == 0 and str(fused) in ran.out
    config = json.loads((fused / "config.json").read_text())
    assert ("quantization" in config) == (bits != "float32" and not dequantize)
    adapted, tokenizer = mlx_lm.load(str(model), adapter_path=str(run))
    loaded, _ = mlx_lm.load(str(fused))
    ids = mx.array([tokenizer.encode("Name three colours.")])
    if bits == "float32" or dequantize:
        assert mx.allclose(loaded(ids), adapted(ids), atol=1e-4).item()
    else:
        assert mx.array_equal(loaded(ids), _fused_by_mlx_lm(model, run, tmp_path / "theirs")(ids)).item()
    assert mlx_dpo("fuse", *flags).code == 2  # what is there stays


def _fused_by_mlx_lm(model: Path, run: Path, into: Path) -> Any:
    flags = ("--model", model, "--adapter-path", run, "--save-path", into)
    subprocess.run([sys.executable, "-m", "mlx_lm", "fuse", *map(str, flags)], check=True, capture_output=True)
    return mlx_lm.load(str(into))[0]


def test_fuse_keeps_the_base_float_type_under_dora(mlx_dpo: Cli, tmp_path: Path) -> None:
    from tests.forward.test_architectures import make_model

    model, run, fused = make_model(tmp_path / "m", "llama", None, mx.bfloat16), tmp_path / "run", tmp_path / "f"
    train = ("train", "--model", model, "--data", PAIRS, "--adapter-path", run, "--iters", 1)
    assert mlx_dpo(*train, "--fine-tune-type", "dora").code == 0
    assert mlx_dpo("fuse", "--model", model, "--adapter-path", run, "--save-path", fused).code == 0
    assert {v.dtype for v in mx.load(str(fused / "model.safetensors")).values()} == {mx.bfloat16}
