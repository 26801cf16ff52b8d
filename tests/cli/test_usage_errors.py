"""Mistakes in a command line: one style, the option or argument first, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS

Cli = Callable[..., CommandResult]

MISTAKES = [
    ("train --modle x", "`--modle`: `mlx-dpo train` has no such option", "Did you mean `--model`?"),
    (
        "train --learning-rat=3",
        "`--learning-rat`: `mlx-dpo train` has no such option",
        "Did you mean `--learning-rate`?",
    ),
    ("train -z", "`-z`: `mlx-dpo train` has no such option", "`mlx-dpo train --help` lists them."),
    ("--quiet", "`--quiet`: `mlx-dpo` has no such option", "`mlx-dpo --help` lists them."),
    ("trian", "`trian`: `mlx-dpo` has no such command", "Did you mean `train`?"),
    ("data chek x", "`chek`: `mlx-dpo data` has no such command", "Did you mean `check`?"),
    ("train --rank eight", "`--rank`: expected a whole number, not 'eight'", ""),
    ("train --beta much", "`--beta`: expected a number, not 'much'", ""),
    ("train --rank 0", "`--rank`: 0 is out of range: at least 1", ""),
    ("plan --config-only --length 3", "`--length`: 3 is out of range: at least 6", ""),
    ("plan --length 9 --length x", "`--length`: expected a whole number, not 'x'", ""),
    ("data show 0 x --model y", "`N`: 0 is out of range: at least 1", ""),
    (
        "train --fine-tune-type lara",
        "`--fine-tune-type`: 'lara' is not one of lora, dora, full",
        "Did you mean `lora`?",
    ),
    ("fuse --bits 7", "`--bits`: '7' is not one of auto, same, 5, 6, 8, none", ""),
    ("label", "`FILE`: required, but not given", "`mlx-dpo label --help` describes it."),
    ("sample", "`--prompts`: required, but not given", "`mlx-dpo sample --help` describes it."),
    ("plan --rank", "`--rank`: requires an argument", "`mlx-dpo plan --help` describes it."),
    ("train --raw=3", "`--raw`: does not take a value", "`mlx-dpo train --help` describes it."),
    ("cache x y", "`x y`: `mlx-dpo cache` takes no such argument", "`mlx-dpo cache --help` describes the command."),
    ("train --loss sigmod --model x --data y", "`--loss`: there is no loss 'sigmod'", "Did you mean `sigmoid`?"),
    ("evaluate --generate 3", "`--generate`: --generate and --judge must be used together", "For example"),
]


@pytest.mark.parametrize(("line", "message", "hint"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_mistakes(mlx_dpo: Cli, line: str, message: str, hint: str) -> None:
    ran = mlx_dpo(*line.split())
    assert ran.code == 2 and ran.out == ""
    first, *rest = ran.err.splitlines()
    assert first == f"error: {message}"
    assert " ".join(rest).startswith(hint) and bool(rest) == bool(hint) and len(rest) <= 1


def test_the_config_file_is_named_and_not_an_option(mlx_dpo: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rank: 0")
    ran = mlx_dpo("train", "-c", file)
    assert ran.code == 2 and ran.err == f"error: {file}: `rank`: 0 is out of range: at least 1\n"


def test_columns_of_rows_are_not_options(mlx_dpo: Cli, tmp_path: Path) -> None:
    """`data` is an option too."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": 3, "chosen": "a", "rejected": "b"}\n')
    ran = mlx_dpo("train", "--model", CHECKPOINT, "--data", tmp_path / "pairs.jsonl")
    assert "`prompt`" in ran.err and "`--prompts`" not in ran.err


def test_a_group_without_a_command_shows_its_help(mlx_dpo: Cli) -> None:
    for arguments in ((), ("data",)):
        ran = mlx_dpo(*arguments)
        assert ran.code == 2 and ran.out == "" and "Commands:" in ran.err and "Examples:" in ran.err


def test_version(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("--version")
    assert ran.code == 0 and ran.out.startswith("mlx-dpo 0.") and ran.err == ""


def test_help_goes_to_stdout(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("train", "--help")
    assert ran.code == 0 and ran.err == "" and "--simpo-gamma FLOAT\n" in ran.out
    assert "[default: 0.1 (simpo: 2)]" in ran.out  # read from the losses
    assert "[default: 0.1]" in mlx_dpo("score", "--help").out


def test_exit_codes_of_commands_stay(mlx_dpo: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    assert mlx_dpo("data", "check", tmp_path / "bad.jsonl").code == 2
    assert mlx_dpo("data", "check", PAIRS).code == 0
