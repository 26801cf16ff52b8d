"""Self-tests of the training engine on this machine's own backend."""

from __future__ import annotations

from functools import partial

from mlx_dpo.doctor.check import ENGINE_GROUP, CheckOutcome, MachineCheck, failed, passed
from mlx_dpo.forward.backend_check import BACKEND_CHECKS, BackendCheck


def run_backend_check(check: BackendCheck) -> CheckOutcome:
    """The outcome of a check that `train` makes too."""
    problem = check.find_problem()
    return failed(problem, check.advice) if problem else passed("agrees with plain operations")


FAST_CHECKS: tuple[MachineCheck, ...] = tuple(  # those that `train` makes too
    MachineCheck(check.name, ENGINE_GROUP, partial(run_backend_check, check)) for check in BACKEND_CHECKS
)
ENGINE_CHECKS = FAST_CHECKS
