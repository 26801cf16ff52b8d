"""mlx's operations are compared with plain ones once; what is wrong is avoided in training, and noted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import Listener, SamplingParams, UserError, sample_completions, train
from mlx_dpo.forward import attention, attention_check, backend_check, operation_checks
from mlx_dpo.forward import network as network_module
from mlx_dpo.forward.backend_check import BACKEND_CHECKS, backend_cache_file, backend_problems, require_usable_backend
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.plain_attention import plain_attention
from mlx_dpo.training.listener import Metrics
from mlx_dpo.utils.random_state import random_state
from tests.forward.broken_mlx import (
    forget_backend,
    plant_copying_numpy,
    plant_refusing_numpy,
    plant_wrong_gradient,
    plant_wrong_output,
)
from tests.forward.families import tiny
from tests.training.test_run import config

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_backend()
    yield
    monkeypatch.undo()
    forget_backend()


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checks that are made from now on."""
    made: list[str] = []

    def counted(check: backend_check.BackendCheck) -> backend_check.BackendCheck:
        def find_problem() -> str | None:
            made.append(check.name)
            return check.find_problem()

        return backend_check.BackendCheck(check.name, find_problem, check.safe_path)

    kept = backend_check.NUMPY_WRITE_THROUGH
    monkeypatch.setattr(
        backend_check, "BACKEND_CHECKS", tuple(check if check is kept else counted(check) for check in BACKEND_CHECKS)
    )
    return made


def test_nothing_is_wrong_here_and_mlx_random_state_stays() -> None:
    mx.random.seed(5)
    before = random_state()
    backend_problems()  # kernels are compiled
    forget_backend()
    backend_cache_file().unlink()
    began = time.process_time()
    assert backend_problems() == {} and require_usable_backend() == []
    assert time.process_time() - began < 1
    assert random_state() == before


def test_it_is_made_once_for_a_machine_and_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_checks(monkeypatch)
    all_names = [check.name for check in BACKEND_CHECKS if check is not backend_check.NUMPY_WRITE_THROUGH]
    assert backend_problems() == {} and made == all_names
    for _ in range(2):
        forget_backend()
        assert backend_problems() == {} and made == all_names
    changes: list[tuple[Any, str, Any]] = [
        (backend_check, "version", lambda name: "99"),
        (backend_check, "own_code_digest", lambda: "changed"),
        (mx, "default_device", lambda: "another"),
        (mx, "device_info", lambda *device: {"device_name": "Apple M9"}),
        (backend_check.os, "uname", lambda: type("System", (), dict.fromkeys(("sysname", "release", "machine"), "9"))),
    ]
    for owner, name, value in changes:
        made.clear()
        forget_backend()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            backend_problems()
        assert made == all_names, name


def test_a_damaged_file_is_not_used_and_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_problems()
    content, made = backend_cache_file().read_bytes(), count_checks(monkeypatch)
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(0, len(content) - 1, 7)]
    for damaged in [*flipped, content[: len(content) // 2], b"", b"[]", b"null", b"{}", b"\xff"]:
        backend_cache_file().write_bytes(damaged)
        forget_backend()
        made.clear()
        assert backend_problems() == {} and made and backend_cache_file().read_bytes() == content, damaged


def test_a_folder_that_can_not_be_written_to_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert backend_problems() == {}


def test_a_problem_is_known_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(operation_checks, "tolerance", lambda *dtype: -1.0)  # nothing is exact enough
        problems = backend_problems()
    assert set(problems) >= {"quantized products", "normalization"}
    forget_backend()
    assert backend_problems() == problems


def test_an_operation_that_is_replaced_in_this_process_is_not_the_one_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_problems()
    content = backend_cache_file().read_bytes()
    forget_backend()
    with monkeypatch.context() as patch:
        plant_wrong_gradient(patch)
        assert set(backend_problems()) == {"fused attention"}
    assert backend_cache_file().read_bytes() == content
    forget_backend()
    assert backend_problems() == {}


@pytest.mark.parametrize("mask_shape", [None, "causal", (7, 12), (1, 1, 7, 12), (2, 1, 7, 12), (2, 4, 7, 12)], ids=str)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["", "sinks"])
def test_plain_attention_is_mlxs(mask_shape: Any, kind: str, has_sinks: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v, upstream = (
        mx.array(rng.standard_normal((2, heads, length, 8)).astype(np.float32))
        for heads, length in ((4, 7), (2, 12), (2, 12), (4, 7))
    )
    mask = mask_shape
    if isinstance(mask_shape, tuple):
        allowed = mx.array(rng.random(mask_shape) < 0.5) | mx.eye(7, 12).astype(mx.bool_)
        mask = allowed if kind == "boolean" else mx.where(allowed, mx.array(rng.random(mask_shape)), -1e9)
    sinks = {"sinks": mx.array(rng.standard_normal(4).astype(np.float32))} if has_sinks else {}
    settings = {"scale": 0.3, "mask": mask, **sinks}
    arrays = [q, k, v, upstream]
    expected = attention_check.attention_results(mx.fast.scaled_dot_product_attention, arrays, settings)
    for name, actual in attention_check.attention_results(plain_attention, arrays, settings).items():
        np.testing.assert_allclose(np.array(actual), np.array(expected[name]), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("plant", "text"),
    [(plant_wrong_gradient, "the gradient of keys: off by 5.0e-01"), (plant_wrong_output, "the output: off by")],
    ids=["gradient", "output"],
)
def test_wrong_attention_is_seen_with_numbers(monkeypatch: pytest.MonkeyPatch, plant: Plant, text: str) -> None:
    plant(monkeypatch)
    problem = backend_problems()["fused attention"]
    assert problem.startswith(text) and "mask" in problem and "float32" in problem


def scaled(function: Callable[..., mx.array], factor: float = 1.001) -> Callable[..., mx.array]:
    return lambda *args, **settings: factor * function(*args, **settings)


@pytest.mark.parametrize(
    ("owner", "function", "name"),
    [
        (mx.fast, "rms_norm", "normalization"),
        (mx.fast, "rope", "rotary position embedding"),
        (mx, "quantized_matmul", "quantized products"),
        (operation_checks, "product_error", "matrix products"),
    ],
)
def test_each_operation_is_seen_by_name_and_training_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, name: str
) -> None:
    wrong = scaled(getattr(owner, function)) if function != "product_error" else lambda: 0.3
    monkeypatch.setattr(owner, function, wrong)
    monkeypatch.setattr(backend_check, "_is_replaced", lambda: True)
    assert set(backend_problems()) == {name}
    for run in (lambda: train(config(tmp_path / "run")), lambda: Network.from_model(tiny("llama"))):
        with pytest.raises(UserError, match=f"the check of {name} failed on this machine: .*(.|\n)*mlx-dpo doctor"):
            run()
    assert not (tmp_path / "run").exists()


class StepLog(Listener):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.notes: list[str] = []

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.values += [metrics[name] for name in ("loss", "rewards/margins", "logps/chosen")]

    def on_note(self, text: str) -> None:
        if "failed on this machine" in text:
            self.notes.append(text)


def losses(run: Path) -> tuple[list[float], list[str]]:
    """Losses, rewards and log-probs of a run, and its notes on the machine."""
    log = StepLog()
    train(config(run, grad_checkpoint=True), listener=log)
    return log.values, log.notes


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (plant_wrong_gradient, "fused attention"),
        (plant_wrong_output, "fused attention"),
        (plant_copying_numpy, "numpy write-through"),
        (plant_refusing_numpy, "numpy write-through"),
    ],
    ids=["gradient", "output", "copies", "refuses"],
)
def test_training_falls_back_says_so_and_has_the_losses_of_a_healthy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, check: str
) -> None:
    healthy, notes = losses(tmp_path / "healthy")
    assert notes == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # no reference log-probs of the healthy run
    forget_backend()
    plant(monkeypatch)
    values, (note,) = losses(tmp_path / "broken")
    np.testing.assert_allclose(values, healthy, rtol=1e-5, atol=1e-5)
    assert note.startswith(f"the check of {check} failed on this machine: ")
    assert "Training avoids it: " in note and "mlx-dpo doctor" in note


@pytest.mark.parametrize("plant", [plant_wrong_gradient, plant_wrong_output], ids=["gradient", "output"])
def test_without_the_fallback_the_losses_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    healthy, _ = losses(tmp_path / "healthy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    plant(monkeypatch)
    monkeypatch.setattr(attention, "has_problem", lambda check: False)
    values, _ = losses(tmp_path / "broken")
    assert np.abs(np.array(values) - healthy).max() > 1e-3


def test_sampling_avoids_wrong_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = tiny("llama"), SamplingParams(max_tokens=8)
    tokenizer = type("Tokenizer", (), {"eos_token_ids": [1], "decode": lambda self, ids, **options: str(ids)})()

    def tokens() -> tuple[int, ...]:
        ((completion,),) = sample_completions(model, tokenizer, [[5, 6, 7, 8]], params)
        return completion.token_ids

    healthy = tokens()
    forget_backend()
    plant_wrong_output(monkeypatch)
    assert tokens() == healthy
    monkeypatch.setattr(attention, "has_problem", lambda check: False)
    assert tokens() != healthy


def test_the_numpy_of_a_gpu_with_its_own_memory_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_copying_numpy(monkeypatch)
    assert set(backend_problems()) == {"numpy write-through"}
    forget_backend()
    monkeypatch.setattr(backend_check, "runs_on_cpu", lambda: False)
    assert backend_problems() == {} and not network_module.numpy_writes_through()
