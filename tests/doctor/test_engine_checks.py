"""The engine's self-tests pass here, and each sees a fault of what it checks, by name, with what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.doctor import device_checks, gradient_checks, resume_check
from mlx_dpo.doctor.check import CheckOutcome, CheckStatus, run_checks
from mlx_dpo.doctor.device_checks import MeasuredModel, check_command_time
from mlx_dpo.doctor.engine_checks import ENGINE_CHECKS, FAST_CHECKS
from mlx_dpo.forward import attention, chunked_recurrence, token_logps
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.prefix_cache import PrefixKVCache
from mlx_dpo.sampling import batched_sampling
from mlx_dpo.training.events import RunPlan, RunStart, Step
from mlx_dpo.training.listener import Listener
from tests.forward.broken_mlx import (
    forget_backend,
    plant_copying_numpy,
    plant_wrong_gradient,
    plant_wrong_output,
)
from tests.marks import mostly_slow

CHECKS = {check.name: check for check in ENGINE_CHECKS}
SLOW_CHECKS = {"kill and resume"}
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_backend()
    yield
    monkeypatch.undo()
    forget_backend()


def outcome(name: str) -> CheckOutcome:
    (result,) = run_checks([CHECKS[name]])
    return result.outcome


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_CHECKS else []) for name in CHECKS]
)
def test_it_passes_here(name: str) -> None:
    found = outcome(name)
    expected = CheckStatus.SKIPPED if name == "time of a GPU command" else CheckStatus.PASSED
    assert (found.status, found.advice) == (expected, None), found.detail
    assert found.detail


def without_prompt_gradient(patch: pytest.MonkeyPatch) -> None:
    """As mlx-lm's own gradient checkpointing does around a cache: keys and values of the prompt are constants."""
    update = PrefixKVCache.update_and_fetch

    def detached(cache: PrefixKVCache, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        cache.arrays = [None if array is None else mx.stop_gradient(array) for array in cache.arrays]
        return update(cache, keys, values)

    patch.setattr(PrefixKVCache, "update_and_fetch", detached)


def wrong_head_gradient(patch: pytest.MonkeyPatch) -> None:
    pull_back = token_logps._pull_back
    patch.setattr(token_logps, "_pull_back", lambda *args: 1.001 * pull_back(*args))


def checkpointing_without_gradient(patch: pytest.MonkeyPatch) -> None:
    def checkpoint(function: Callable[..., list[mx.array]]) -> Callable[..., list[mx.array]]:
        return lambda arguments: [mx.stop_gradient(array) for array in function(arguments)]

    patch.setattr(mx, "checkpoint", checkpoint)


def blocks_without_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "_mask_rows", lambda mask, start, stop: None)


def wrong_repeated_pass(patch: pytest.MonkeyPatch) -> None:
    lazy_backward = Network.lazy_backward

    def without_upstream(self: Network, batch: Any, count: int = 0, upstream_grad: mx.array | None = None) -> Any:
        return lazy_backward(self, batch, count, None if upstream_grad is None else upstream_grad[::-1])

    patch.setattr(Network, "lazy_backward", without_upstream)


def wrong_quantized_product(bits: int) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        product = mx.quantized_matmul

        def wrong(*args: Any, **settings: Any) -> mx.array:
            is_wrong = bits in (settings.get("bits"), *args[6:7])
            return (1.001 if is_wrong else 1.0) * product(*args, **settings)

        patch.setattr(mx, "quantized_matmul", wrong)

    return plant


def wrong_bfloat16_norm(patch: pytest.MonkeyPatch) -> None:
    norm = mx.fast.rms_norm

    def wrong(x: mx.array, *args: Any) -> mx.array:
        return norm(x[::-1], *args) if x.dtype == mx.bfloat16 else norm(x, *args)

    patch.setattr(mx.fast, "rms_norm", wrong)


def scaled(owner: Any, name: str, factor: float = 1.001) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **settings: factor * function(*args, **settings))

    return plant


def wrong_delta_inverse(patch: pytest.MonkeyPatch) -> None:
    inverse = chunked_recurrence._inverse_by_halves
    patch.setattr(chunked_recurrence, "_inverse_by_halves", lambda lower: inverse(0.999 * lower))


def seeds_that_depend_on_the_call(patch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    patch.setattr(
        batched_sampling, "completion_uniforms", lambda *numbers: generator.random(numbers[-1]).astype(np.float32)
    )


def attention_is_wrong_and_not_avoided(patch: pytest.MonkeyPatch) -> None:
    attend = mx.fast.scaled_dot_product_attention
    patch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda q, k, v, **settings: attend(q, k, v[:, :, ::-1], **settings)
    )
    patch.setattr(attention, "has_problem", lambda check: False)


def a_product_of_few_bits(patch: pytest.MonkeyPatch) -> None:
    from mlx_dpo.forward import operation_checks

    patch.setattr(operation_checks, "product_error", lambda: 0.1)


def lying_counter(name: str) -> Plant:
    return lambda patch: patch.setattr(mx, name, lambda: 12345)


@pytest.mark.parametrize(
    ("name", "plant", "detail", "advice"),
    [
        ("fused attention", plant_wrong_gradient, "the gradient of keys: off by 5.0e-01", "in plain operations"),
        ("fused attention", plant_wrong_output, "the output: off by", "in plain operations"),
        ("numpy write-through", plant_copying_numpy, "numpy got a copy", "each forward pass twice"),
        ("matrix products", a_product_of_few_bits, "differs from numpy's by 1.0e-01", "Training can't avoid it"),
        ("quantized products", wrong_quantized_product(8), "8 bits", "another version of mlx"),
        ("normalization", scaled(mx.fast, "rms_norm"), "the output: off by 1.0e-03", "another version of mlx"),
        ("rotary position embedding", scaled(mx.fast, "rope"), "off by 1.0e-03", "another version of mlx"),
        ("shared prefix", without_prompt_gradient, "the gradient of model.layers", "don't use what it gives"),
        ("chunked head", wrong_head_gradient, "the gradient of model.layers", "don't use what it gives"),
        ("gradient checkpointing", checkpointing_without_gradient, "25% of modules", "don't use what it gives"),
        ("attention in blocks", blocks_without_mask, "the log-probs", "don't use what it gives"),
        ("repeated forward pass", wrong_repeated_pass, "the gradient of model.layers", "don't use what it gives"),
        ("4-bit model", wrong_quantized_product(4), "off by", "don't use what it gives"),
        ("8-bit model", wrong_quantized_product(8), "off by", "don't use what it gives"),
        ("bfloat16 model", wrong_bfloat16_norm, "off by", "don't use what it gives"),
        ("gated delta rule", wrong_delta_inverse, "off by", "others are not affected"),
        ("memory counters", lying_counter("get_active_memory"), "mlx counts 0 B, where", "--micro-batch-tokens"),
        ("memory counters", lying_counter("get_peak_memory"), "peak memory", "--micro-batch-tokens"),
        ("sampling", seeds_that_depend_on_the_call, "with the same seed, completion 1 of prompt 1", "`mlx-dpo sample`"),
        ("sampling", attention_is_wrong_and_not_avoided, "below the largest of a plain pass", "`mlx-dpo sample`"),
    ],
)
def test_a_planted_fault_is_found_by_name_with_numbers_and_advice(
    monkeypatch: pytest.MonkeyPatch, name: str, plant: Plant, detail: str, advice: str
) -> None:
    plant(monkeypatch)
    found = outcome(name)
    assert found.status is CheckStatus.FAILED and detail in found.detail, found.detail
    assert found.advice is not None and advice in found.advice


@pytest.mark.parametrize("plant", mostly_slow([plant_wrong_gradient, plant_copying_numpy, plant_wrong_output], every=3))
def test_a_fault_that_training_avoids_is_the_finding_of_one_check(
    monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    results = list(run_checks(check for name, check in CHECKS.items() if name not in SLOW_CHECKS))
    failed = [result.name for result in results if result.outcome.status is CheckStatus.FAILED]
    assert failed == ["numpy write-through" if plant is plant_copying_numpy else "fused attention"]


class FakeProcess:
    """A training process that begins, and is killed or writes an adapter."""

    adapters: tuple[bytes, ...] = (b"same", b"same")
    first_step = 2
    crash: str | None = None

    def __init__(self, job: dict[str, Any], listener: Listener) -> None:
        self.run, self.listener, self.resume = Path(job["config"]["adapter_path"]), listener, job["resume"]
        self.process, self.returncode, self.crash_reason = self, 0, self.crash
        self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True

    def follow(self) -> None:
        plan = RunPlan(self.run, 12, self.first_step if self.resume else 0, {}, "pairs", 0, 0, 0, 0, 0)
        self.listener.handle(RunStart(plan))
        for step in range(plan.first_step + 1, plan.steps + 1):
            self.listener.handle(Step(step, {}))
            if self.is_killed:
                self.returncode = -signal.SIGKILL
                return
        self.run.mkdir(exist_ok=True)
        (self.run / "adapters.safetensors").write_bytes(self.adapters[self.resume])

    def outcome(self) -> None:
        pass


@pytest.mark.parametrize(
    ("faults", "detail"),
    [
        ({}, None),
        ({"adapters": (b"same", b"sane")}, "1 of the adapter's 4 bytes"),
        ({"first_step": 0}, "resumed after step 0"),
        ({"kill": lambda self: None}, "the run to be killed: the training process ended by itself, with exit code 0"),
        ({"crash": "was ended by SIGABRT"}, "the training process was ended by SIGABRT"),
    ],
)
def test_a_run_that_ends_in_other_bytes_is_found(
    monkeypatch: pytest.MonkeyPatch, faults: dict[str, Any], detail: str | None
) -> None:
    monkeypatch.setattr(resume_check, "TrainingProcess", type("Process", (FakeProcess,), faults))
    found = outcome("kill and resume")
    if detail is None:
        assert found.status is CheckStatus.PASSED
    else:
        assert found.status is CheckStatus.FAILED and detail in found.detail and found.advice


def test_the_time_of_a_command_is_compared_with_what_training_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "runs_on_cpu", lambda: False)
    small = MeasuredModel("a small model", 64, 128, 2, 1, 32, 1024)
    monkeypatch.setattr(device_checks, "MAX_BLOCK_SECONDS", 100.0)
    found = check_command_time(small)
    assert found.status is CheckStatus.PASSED and "of a small model takes" in found.detail
    monkeypatch.setattr(device_checks, "MAX_BLOCK_SECONDS", 1e-6)
    found = check_command_time(small)
    assert found.status is CheckStatus.WARNING and found.advice is not None and "display" in found.advice


def test_plain_results_do_not_depend_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the paths are compared with is mlx's and mlx-lm's alone."""

    def fail(*args: Any, **settings: Any) -> None:
        raise AssertionError("the engine was used")

    for owner, name in [(Network, "lazy_backward"), (PrefixKVCache, "update_and_fetch"), (token_logps, "_chunk")]:
        monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr(attention, "_in_blocks", fail)
    model = gradient_checks.make_tiny_model("qwen3", bits=4)
    batch = gradient_checks.make_batch((5, 3))
    results = gradient_checks._plain_results(
        gradient_checks._in_float32(model), batch, np.ones(len(batch.sequences), np.float32)
    )
    assert len(results) > 10


SITE = """
import sys
sys.path.insert(0, {tests!r})
import pytest
from tests.forward.broken_mlx import plant_copying_numpy, plant_wrong_gradient
patch = pytest.MonkeyPatch()
plant_wrong_gradient(patch)
plant_copying_numpy(patch)
"""


def test_the_command_finds_a_patched_mlx_and_a_numpy_that_copies(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "sitecustomize.py").write_text(SITE.format(tests=str(root)))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-m", "mlx_dpo", "doctor", "--quick", "--json"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 1, process.stderr
    failed = {check["name"]: check for check in json.loads(process.stdout)["checks"] if check["status"] == "failed"}
    assert set(failed) == {"fused attention", "numpy write-through"}
    assert all("Training avoids it" in check["advice"] for check in failed.values())


def test_the_fast_checks_are_those_of_train() -> None:
    assert [check.name for check in FAST_CHECKS] == [check.name for check in ENGINE_CHECKS[: len(FAST_CHECKS)]]
