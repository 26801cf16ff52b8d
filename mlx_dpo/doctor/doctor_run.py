"""All checks of `mlx-dpo doctor`, one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mlx_dpo.doctor.check import ENGINE_GROUP, CheckResult, run_checks, skipped
from mlx_dpo.doctor.check_process import run_checks_in_process
from mlx_dpo.doctor.environment_checks import environment_checks
from mlx_dpo.doctor.machine_facts import MachineFacts
from mlx_dpo.utils.hub_client import redact_secrets
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

SELF_TESTS = "mlx_dpo.doctor.engine_checks:ENGINE_CHECKS"  # not imported here: that would import mlx
FAST_SELF_TESTS = "mlx_dpo.doctor.engine_checks:FAST_CHECKS"


def run_doctor(
    facts: MachineFacts, *, quick: bool = False, shows_user: bool = True, progress: Progress = NO_PROGRESS
) -> Iterator[CheckResult]:
    """Run the checks, and yield each result as it is known; none holds a secret.

    Args:
        facts: result of `read_machine`.
        quick: leave out the self-tests that take seconds.
        shows_user: whether a result may name the user of the Hub.
        progress: a phase begins with each check.
    """
    for result in _results(facts, quick, shows_user, progress):
        outcome = dataclasses.replace(result.outcome, **_redacted(vars(result.outcome)))
        yield dataclasses.replace(result, outcome=outcome)


def _results(facts: MachineFacts, quick: bool, shows_user: bool, progress: Progress) -> Iterator[CheckResult]:
    yield from run_checks(environment_checks(facts, shows_user=shows_user), progress)
    if facts.mlx.facts is None:
        yield CheckResult("self-tests", ENGINE_GROUP, skipped("mlx does not run"), 0.0)
    else:
        yield from run_checks_in_process(FAST_SELF_TESTS if quick else SELF_TESTS, ENGINE_GROUP, progress)


def doctor_mapping(facts: MachineFacts, results: list[CheckResult], *, is_complete: bool) -> dict[str, Any]:
    """Facts and results as plain values, without secrets.

    Args:
        facts: what is known of the machine.
        results: the checks that were run.
        is_complete: whether all were.
    """
    checks = [result.to_mapping() for result in results]
    return {"facts": _redacted(facts.to_mapping()), "checks": checks, "complete": is_complete}


def _redacted(value: Any) -> Any:
    """A value whose texts are without secrets."""
    if type(value) is str:
        return redact_secrets(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value
