"""What mlx can't do on this machine is one sentence; it is not taken for a property of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo import UserError
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward import path_agreement
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.oom_fallback import is_out_of_memory
from mlx_dpo.forward.path_agreement import count_logits
from mlx_dpo.forward.policy import make_policy
from tests.conftest import CHECKPOINT, PAIRS
from tests.forward.families import tiny


class Failing(nn.Module):
    """A model whose forward pass fails as mlx does."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __call__(self, inputs: mx.array) -> mx.array:
        raise RuntimeError(self.reason)


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="only the CPU lacks the operation")
def test_a_bfloat16_mixture_of_experts_on_the_cpu() -> None:
    model = tiny("mixtral")
    model.set_dtype(mx.bfloat16)
    with pytest.raises(UserError, match=r"can't run this model on this machine: .*GatherMM.*\n.*float32"):
        make_policy(model, AdapterSpec("lora", -1), None)


def test_a_missing_operation_is_a_user_error_and_missing_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="on this machine: no such kernel\nAn operation"):
        count_logits(Failing("no such kernel"))
    with pytest.raises(RuntimeError) as raised:  # the supervisor restarts the run with less
        count_logits(Failing("[malloc] Unable to allocate 3 bytes."))
    assert is_out_of_memory(raised.value) and not isinstance(raised.value, UserError)


def test_an_error_of_the_machine_while_probing_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    model = tiny("llama")
    monkeypatch.setattr(Network, "_hidden_states", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        Network.from_model(model)


def test_a_missing_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"TMPDIR is .*gone, which is not a folder"):
        count_logits(Failing("filesystem error"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert path_agreement._missing_temporary_folder() is None


def test_training_with_a_missing_temporary_folder(tmp_path: Path) -> None:
    flags = ["--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path / "run", "--iters", 1, "--quiet"]
    command = [sys.executable, "-m", "mlx_dpo", "train", *map(str, flags)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "gone")}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:  # where mlx compiles nothing, it trains
        assert ran.returncode == 2 and "Traceback" not in ran.stderr
        assert "TMPDIR is" in ran.stderr and "goes through a model of this type" not in ran.stderr
