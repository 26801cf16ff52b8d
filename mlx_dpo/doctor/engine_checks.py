"""Self-tests of the training engine on this machine's own backend."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from mlx_dpo.doctor.check import ENGINE_GROUP, CheckOutcome, MachineCheck, failed, passed
from mlx_dpo.doctor.device_checks import check_command_time, check_memory_counters
from mlx_dpo.doctor.gradient_checks import FEW_TOKENS, LONG_PROMPT, PathCase, check_gated_delta, check_paths
from mlx_dpo.doctor.resume_check import check_resume
from mlx_dpo.doctor.sampling_check import check_sampling
from mlx_dpo.forward.backend_check import BACKEND_CHECKS, BackendCheck
from mlx_dpo.forward.network import PromptSharing


def run_backend_check(check: BackendCheck) -> CheckOutcome:
    """The outcome of a check that `train` makes too."""
    problem = check.find_problem()
    return failed(problem, check.advice) if problem else passed("agrees with plain operations")


_PATHS: dict[str, tuple[PathCase, ...]] = {
    "shared prefix": (PathCase(), PathCase("gemma3_text")),
    "chunked head": (PathCase(sharing=PromptSharing.NONE, chunk_tokens=FEW_TOKENS),),
    "gradient checkpointing": tuple(PathCase(checkpointed_share=share) for share in (0.25, 0.75, 1.0)),
    "attention in blocks": tuple(
        PathCase(prompt_lengths=LONG_PROMPT, checkpointed_share=share) for share in (0.0, 1.0)
    ),
    "repeated forward pass": (PathCase(repeats_forward=True), PathCase(repeats_forward=True, checkpointed_share=1.0)),
    "4-bit model": (PathCase(bits=4),),
    "8-bit model": (PathCase(bits=8),),
    "bfloat16 model": (PathCase(dtype=mx.bfloat16),),
}

FAST_CHECKS: tuple[MachineCheck, ...] = tuple(  # those that `train` makes too
    MachineCheck(check.name, ENGINE_GROUP, partial(run_backend_check, check)) for check in BACKEND_CHECKS
)
ENGINE_CHECKS: tuple[MachineCheck, ...] = (
    *FAST_CHECKS,
    *(MachineCheck(name, ENGINE_GROUP, partial(check_paths, *cases)) for name, cases in _PATHS.items()),
    MachineCheck("gated delta rule", ENGINE_GROUP, check_gated_delta),
    MachineCheck("kill and resume", ENGINE_GROUP, check_resume),
    MachineCheck("memory counters", ENGINE_GROUP, check_memory_counters),
    MachineCheck("time of a GPU command", ENGINE_GROUP, check_command_time),
    MachineCheck("sampling", ENGINE_GROUP, check_sampling),
)
