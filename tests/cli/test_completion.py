"""What the Tab key completes: through typer's scripts in the shells that are installed, and without model code."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.cli.option_values import complete_judge, complete_loss, complete_model, complete_reference, loss_names
from tests.discovery.fake_models import Machine, config, model_files, write_hub_model, write_model

Complete = Callable[..., list[str]]
SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture
def program(tmp_path: Path, machine: Machine) -> Path:
    """A program mlx-dpo, in a folder for PATH, on a machine with two models."""
    write_hub_model(machine.hub, "mlx-community/Tiny-4bit", model_files(config("llama")))
    write_model(machine.lm_studio / "mlx-community" / "Tiny-8bit", model_files(config("qwen3")))
    folder = tmp_path / "bin"
    folder.mkdir()
    paths = os.pathsep.join(filter(None, sys.path))
    script = f'#!/bin/sh\nPYTHONPATH={shlex.quote(paths)} exec {shlex.quote(sys.executable)} -m mlx_dpo "$@"\n'
    (folder / "mlx-dpo").write_text(script)
    (folder / "mlx-dpo").chmod(0o755)
    return folder


def completions(line: str, shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call mlx-dpo as a shell's script does."""
    words = line.split(" ")
    variables = {"_MLX_DPO_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    variables |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args", **environment}
    command = [sys.executable, "-X", "importtime", "-m", "mlx_dpo"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_options_commands_and_values(shell: str) -> None:
    ran = completions("mlx-dpo data ", shell)
    names = ["check", "show", "convert", "fix"]
    assert ran.returncode == 0 and all(name in ran.stdout for name in names)
    if shell == "fish":  # each line is a completion
        assert [line.partition("\t")[0] for line in ran.stdout.splitlines()] == names
    assert "--learning-rate" in completions("mlx-dpo train --learn", shell).stdout


@pytest.mark.parametrize("line", ["mlx-dpo train --lo", "mlx-dpo train --loss si", "mlx-dpo train --model T"])
def test_no_model_code_is_imported(line: str, machine: Machine) -> None:
    write_hub_model(machine.hub, "Tiny/Tiny", model_files(config("llama")))
    ran = completions(line, "zsh", HF_HUB_CACHE=str(machine.hub))
    assert ran.returncode == 0 and '"' in ran.stdout
    imported = {part.rpartition("|")[2].strip().partition(".")[0] for part in ran.stderr.splitlines()}
    assert imported & {"mlx", "mlx_lm", "numpy", "transformers", "httpx"} == set()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash(program: Path) -> None:
    """The script that --show-completion prints, in bash itself."""

    expected = {
        ("mlx-dpo", "tr"): ["train"],
        ("mlx-dpo", "train", "--model", ""): ["mlx-community/Tiny-4bit", "mlx-community/Tiny-8bit"],
        ("mlx-dpo", "fuse", "--bits", "a"): ["auto"],
        ("mlx-dpo", "train", "--data", "pa"): [],
    }
    lines = ["source <(mlx-dpo --show-completion)", "complete -p mlx-dpo"]
    for words in expected:
        lines.append(f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _mlx_dpo_completion mlx-dpo")
        lines.append('echo "${COMPREPLY[@]}"')
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "--norc", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == ""
    registered, *values = ran.stdout.splitlines()
    assert registered.startswith("complete -o default ")  # files and folders where nothing else is known
    assert [line.split() for line in values] == list(expected.values())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_installation(program: Path, machine: Machine) -> None:
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "--norc", "-c", "mlx-dpo --install-completion; exit $?"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "completion installed" in ran.stdout
    assert (machine.home / ".bash_completions" / "mlx-dpo.sh").is_file()
    assert "mlx-dpo.sh" in (machine.home / ".bashrc").read_text()


def test_names_of_losses_are_those_of_the_registry() -> None:
    from mlx_dpo.objectives import LOSS_FUNCTIONS

    assert loss_names() == sorted(LOSS_FUNCTIONS)
    assert complete_loss("apo_") == ["apo_down", "apo_zero", "apo_zero_unpaired"]
    assert complete_loss("sigmoid,bco_") == ["sigmoid,bco_pair"]


def test_models_judges_and_references(machine: Machine) -> None:
    write_hub_model(machine.hub, "a/Tiny", model_files(config("llama")))
    write_hub_model(machine.hub, "b/partly", model_files(config("llama"), shards=2, present=1))
    write_hub_model(machine.hub, "c/embeddings", model_files(config("bert")))
    write_model(Path("local"), model_files(config("llama")))
    Path("judges.py").write_text("")
    write_model(Path("adapter"), {"adapter_config.json": {}})
    assert complete_model("") == ["a/Tiny", "local"]
    assert complete_model("a/") == ["a/Tiny"]
    assert complete_model("./") == []  # the shell completes paths
    assert complete_reference("") == ["initial", "base", "none", "a/Tiny", "local"]
    assert complete_judge("") == ["judges.py:", "https://", "http://localhost:", "adapter", "a/Tiny", "local"]
    assert complete_judge("ht") == ["https://", "http://localhost:"]
