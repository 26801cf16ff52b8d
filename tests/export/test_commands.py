"""export and import as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import pytest

from mlx_dpo.adapters.adapter_folder import read_adapter
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL

Cli = Callable[..., CommandResult]
ADAPTER = ("--adapter-path", TRL / "adapter", "--model", CHECKPOINT)


def test_there_and_back(mlx_dpo: Cli, tmp_path: Path) -> None:
    out, run = tmp_path / "deep" / "out", tmp_path / "run"
    output = json.loads(mlx_dpo("export", "--format", "peft", *ADAPTER, out, "--json").out)
    assert output == {"path": str(out), "format": "peft", "bytes": sum(f.stat().st_size for f in out.iterdir())}
    output = json.loads(mlx_dpo("import", out, run, "--json").out)
    assert (output["path"], output["model"], output["fine_tune_type"]) == (str(run), str(CHECKPOINT), "lora")
    assert output["lora_parameters"]["rank"] == 4 and output["num_layers"] == 2
    (_, ours), (_, back) = read_adapter(TRL / "adapter"), read_adapter(run)
    assert all(mx.array_equal(ours[k], back[k]) for k in ours)
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--init-adapter", run, "--adapter-path", tmp_path / "more")
    assert mlx_dpo("train", *flags, "--iters", 1).code == 0


def test_what_is_printed(mlx_dpo: Cli, tmp_path: Path) -> None:
    ran = mlx_dpo("export", "--format", "gguf", "--model", CHECKPOINT, tmp_path / "a.gguf")
    assert ran.code == 0 and "llama-cli -m" in ran.out
    ran = mlx_dpo("export", "--format", "gguf-lora", *ADAPTER, tmp_path / "lora.gguf")
    assert ran.code == 0 and "--lora" in ran.out
    ran = mlx_dpo("export", "--format", "peft", *ADAPTER, tmp_path / "peft")
    assert ran.code == 0 and "PeftModel" in ran.out
    ran = mlx_dpo("import", tmp_path / "peft", tmp_path / "run")
    assert ran.code == 0 and "--init-adapter" in ran.out and "rank 4, scale 2" in ran.out


def test_gguf_types(mlx_dpo: Cli, tmp_path: Path) -> None:
    sizes = []
    for kind in ("f32", "f16", "q8_0"):
        file = tmp_path / f"{kind}.gguf"
        flags = ("--format", "gguf", "--model", CHECKPOINT, "--gguf-type", kind)
        sizes.append(json.loads(mlx_dpo("export", *flags, file, "--json").out)["bytes"])
        assert gguf.GGUFReader(file).fields["general.file_type"].contents() == {"f32": 0, "f16": 1, "q8_0": 7}[kind]
    assert sizes[2] < sizes[1] < sizes[0]


WRONG = [
    (("--format", "gguf"), "--model", "fuse"),
    (("--format", "gguf", *ADAPTER), "--adapter-path has no effect with", "fuse"),
    (("--format", "gguf-lora", *ADAPTER, "--gguf-type", "f16"), "--gguf-type has no effect with"),
    (("--format", "peft", *ADAPTER, "--gguf-type", "f16"), "--gguf-type has no effect with"),
    (("--format", "peft", "--adapter-path", "nowhere", "--model", CHECKPOINT), "no such folder"),
    (("--format", "gguf", "--model", TRL), "config.json"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: " ".join(map(str, case[1:])))
def test_mistakes_are_one_message(mlx_dpo: Cli, tmp_path: Path, case: tuple[tuple[object, ...], ...]) -> None:
    flags, *expected = case
    ran = mlx_dpo("export", *flags, tmp_path / "out")
    assert ran.code == 2 and "Traceback" not in ran.err and not list(tmp_path.iterdir())
    assert all(str(words) in ran.err for words in expected), ran.err


def test_what_is_there_stays(mlx_dpo: Cli, tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.write_text("mine")
    for flags in (("--format", "peft", *ADAPTER), ("--format", "gguf", "--model", CHECKPOINT)):
        ran = mlx_dpo("export", *flags, existing)
        assert ran.code == 2 and "exists already" in ran.err and existing.read_text() == "mine"
    assert mlx_dpo("export", "--format", "peft", *ADAPTER, tmp_path / "peft").code == 0
    ran = mlx_dpo("import", tmp_path / "peft", existing)
    assert ran.code == 2 and "exists already" in ran.err and existing.read_text() == "mine"


def test_a_folder_that_cant_be_written_is_said(mlx_dpo: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = mlx_dpo("export", "--format", "peft", *ADAPTER, tmp_path / "file" / "out")
    assert ran.code == 2 and "can't be written" in ran.err
