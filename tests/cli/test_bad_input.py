"""A user's mistakes: one message that says what and where, exit code 2, no traceback, and earlier work untouched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows

Cli = Callable[..., CommandResult]
GOOD = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}


@pytest.fixture
def fails(mlx_dpo: Cli, tmp_path: Path) -> Callable[..., str]:
    """Runs train with some options replaced; checks that it fails as a user's mistake; returns the message."""

    def run(**options: Any) -> str:
        given = {"model": CHECKPOINT, "data": PAIRS, "adapter_path": tmp_path / "run", "iters": 2, **options}
        flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        ran = mlx_dpo("train", *flags)
        assert ran.code == 2, ran
        assert "Traceback" not in ran.err and ran.out == ""
        assert not (Path(given["adapter_path"]) / "adapters.safetensors").is_file() or options.get("adapter_path")
        return " ".join(ran.err.split())

    return run


def lines(file: Path, *rows: str) -> Path:
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def test_no_such_model(fails: Callable[..., str]) -> None:
    assert "no-such-model" in fails(model="no-such-model")
    assert "no such folder" in fails(model="./no/such/model")
    assert "nobody/nothing" in fails(model="nobody/nothing")  # a Hub id, and there is no network


def test_not_a_model(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in fails(model=tmp_path / "empty")
    assert "file" in fails(model=PAIRS)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no_such_type"}', '{"hidden_size": 3}'])
def test_a_config_that_is_none(fails: Callable[..., str], checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    assert str(checkpoint) in fails(model=checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000, 100_000])
def test_truncated_weights(fails: Callable[..., str], checkpoint: Path, keep: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(checkpoint) in fails(model=checkpoint)


def test_truncated_tokenizer(fails: Callable[..., str], checkpoint: Path) -> None:
    file = checkpoint / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    assert str(checkpoint) in fails(model=checkpoint)


def test_no_chat_template(fails: Callable[..., str], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    assert "chat template" in fails(model=checkpoint)


def test_missing_and_empty_data(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "missing.jsonl" in fails(data=tmp_path / "missing.jsonl")
    assert "empty.jsonl" in fails(data=lines(tmp_path / "empty.jsonl"))
    (tmp_path / "folder").mkdir()
    assert "train.jsonl" in fails(data=tmp_path / "folder")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": "Hi", "chosen": ', "JSON"),
        ('{"prompt": "Hi", "chosen": "Hello."}', "rejected"),
        ('{"prompt": "Hi", "chosen": 7, "rejected": "No."}', "chosen"),
        ('{"prompt": "Hi", "choosen": "Hello.", "rejected": "No."}', "choosen"),
        ("[1, 2]", "object"),
        ('{"prompt": "Hi", "chosen": "", "rejected": "No."}', "chosen"),
    ],
)
def test_a_bad_row_on_line_17(fails: Callable[..., str], tmp_path: Path, bad: str, said: str) -> None:
    message = fails(data=lines(tmp_path / "pairs.jsonl", *[json.dumps(GOOD)] * 16, bad, *[json.dumps(GOOD)] * 9))
    assert "pairs.jsonl:17" in message
    assert said in message


def test_invalid_utf8(fails: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}\n')
    message = fails(data=file)
    assert "pairs.jsonl:2" in message and "UTF-8" in message


def test_a_bad_row_in_the_held_out_file(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "valid.jsonl:1" in fails(valid_data=lines(tmp_path / "valid.jsonl", "nonsense"))


def test_an_adapter_for_another_model(fails: Callable[..., str], tmp_path: Path) -> None:
    import mlx.core as mx

    other = tmp_path / "adapter"
    other.mkdir()
    tensors = {k: v[:, :2] if k.endswith("lora_a") else v for k, v in _adapter().items()}
    mx.save_safetensors(str(other / "adapters.safetensors"), {k: mx.contiguous(v) for k, v in tensors.items()})
    (other / "adapter_config.json").write_text((TRL / "adapter" / "adapter_config.json").read_text())
    assert "another model" in fails(init_adapter=other)
    (other / "adapters.safetensors").write_bytes(b"junk")
    assert "damaged" in fails(init_adapter=other)
    (other / "adapter_config.json").write_text('{"fine_tune_type": "lora"}')
    assert "adapter_config.json" in fails(init_adapter=other)
    assert "adapter" in fails(init_adapter=tmp_path)


def _adapter() -> dict[str, Any]:
    import mlx.core as mx

    return mx.load(str(TRL / "adapter" / "adapters.safetensors"))


def test_a_folder_that_cannot_be_written(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be written" in fails(adapter_path=tmp_path / "file" / "run")
    if sys.platform == "linux":
        assert "can't be written" in fails(adapter_path="/proc/run")  # read-only even for root


def test_an_earlier_run_is_untouched(mlx_dpo: Cli, fails: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", run)
    assert mlx_dpo("train", *flags, "--iters", 1).code == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "--resume" in fails(adapter_path=run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_nothing_to_resume(mlx_dpo: Cli, tmp_path: Path) -> None:
    ran = mlx_dpo("train", "--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path, "--resume")
    assert ran.code == 2 and "no checkpoint" in ran.err


@pytest.mark.parametrize(
    ("knob", "value", "said"),
    [
        ("loss", "sigmod", "sigmoid"),
        ("label_smoothing", 0.7, "--label-smoothing"),
        ("beta", -1, "beta"),
        ("memory_limit", "lots", "12GB"),
        ("lora_keys", "no.such.layer", "q_proj"),
        ("overlong", "error", "max-length"),
    ],
)
def test_knobs_out_of_range(fails: Callable[..., str], knob: str, value: object, said: str) -> None:
    extra = {"max_length": 8} if knob == "overlong" else {}
    assert said in fails(**{knob: value}, **extra)


def test_an_unknown_key_in_the_config_names_the_nearest(mlx_dpo: Cli, tmp_path: Path) -> None:
    file = lines(tmp_path / "c.yaml", f"model: {CHECKPOINT}", f"data: {PAIRS}", "learning-rat: 1e-5")
    ran = mlx_dpo("train", "-c", file)
    assert ran.code == 2
    assert "learning-rat" in ran.err and "Did you mean `learning_rate`?" in ran.err


@pytest.mark.parametrize(
    ("content", "said"),
    [("model: [1", "YAML"), ("- a", "key: value"), ("iters: many", "whole number"), ("raw: 3", "true or false")],
)
def test_a_config_file_that_is_none(mlx_dpo: Cli, tmp_path: Path, content: str, said: str) -> None:
    ran = mlx_dpo("train", "-c", lines(tmp_path / "c.yaml", content))
    assert ran.code == 2 and "c.yaml" in ran.err and said in ran.err


def test_full_fine_tuning_of_a_quantized_model(fails: Callable[..., str], tmp_path: Path) -> None:
    from tests.forward.test_architectures import QUANTIZATIONS, make_model

    model = make_model(tmp_path / "model", "llama", QUANTIZATIONS["4bit"])
    assert "quantized" in fails(model=model, fine_tune_type="full")


def test_an_unknown_flag(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("train", "--modle", "x")
    assert ran.code == 2 and "--model" in ran.err


def test_evaluate_and_fuse_and_compare(mlx_dpo: Cli, tmp_path: Path) -> None:
    for command in (
        ("evaluate", "--model", "no-such-model", "--data", PAIRS),
        ("evaluate", "--model", CHECKPOINT, "--data", tmp_path / "none.jsonl"),
        ("evaluate", "--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path),
        ("fuse", "--model", CHECKPOINT, "--adapter-path", tmp_path),
        ("fuse", "--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--save-path", TRL),
        ("compare", "--model", CHECKPOINT, "--adapter-path", tmp_path, "--prompt", "Hi"),
        ("compare", "--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--prompts", tmp_path / "none.txt"),
    ):
        ran = mlx_dpo(*command)
        assert ran.code == 2, (command, ran)
        assert "error:" in ran.err and "Traceback" not in ran.err and ran.out == ""


def test_rows_of_pairs_file_are_good(tmp_path: Path) -> None:
    """The rows that the bad ones stand among are fine by themselves."""
    from mlx_dpo.data.example_file import ExampleFile

    assert len(ExampleFile.open(str(write_rows(tmp_path / "good.jsonl", [GOOD, *rows_of(PAIRS)])))) == 9
