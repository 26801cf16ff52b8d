"""Running commands as a shell would, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mlx_dpo.cli import main


@dataclass
class CommandResult:
    code: int
    out: str
    err: str


@pytest.fixture
def mlx_dpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """`mlx_dpo("train", "--model", folder)` runs the command; its exit code and what it printed come back.

    `train` is unsupervised, for a process of its own takes seconds to begin; `--supervise` makes it what a shell's is.
    """

    def run(*arguments: object) -> CommandResult:
        here = arguments[:1] == ("train",) and "--supervise" not in arguments
        monkeypatch.setattr(sys, "argv", ["mlx-dpo", *map(str, arguments), *(["--no-supervise"] if here else [])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return CommandResult(int(ended.value.code or 0), out, err)

    return run
