"""What only macOS has, against a stand-in for its commands: no Mac was at hand."""

from __future__ import annotations

import pytest

from mlx_dpo.doctor import package_versions
from mlx_dpo.doctor.check import CheckStatus
from mlx_dpo.doctor.macos import (
    GIB,
    check_architecture,
    check_macos_version,
    check_wired_limit,
    command_output,
    read_mac,
    wired_limit_range,
)
from tests.doctor.stand_ins import mac, mac_machine

WARNING, FAILED, PASSED = CheckStatus.WARNING, CheckStatus.FAILED, CheckStatus.PASSED


def test_what_the_commands_print_is_read() -> None:
    facts = mac(wired_limit_mb="24576")
    assert (facts.chip, facts.version, facts.build) == ("Apple M1 Max", "15.6", "24G84")
    assert (facts.performance_cores, facts.efficiency_cores, facts.memory_bytes) == (8, 2, 32 * GIB)
    assert facts.wired_limit_bytes == 24 * GIB and facts.has_developer_tools and not facts.is_translated
    assert mac_machine().system.cores == "10 (8 performance, 2 efficiency)"


def test_a_mac_whose_commands_all_fail_is_described_too() -> None:
    facts = read_mac(lambda command: None)
    assert facts.memory_bytes is None and facts.wired_limit_bytes is None and not facts.is_translated
    assert check_wired_limit(facts).status is check_macos_version(facts, (14, 0)).status is WARNING


def test_a_command_that_fails_or_is_missing_prints_nothing() -> None:
    assert command_output(["echo", "a"]) == "a"
    assert command_output(["false"]) is command_output(["mlx-dpo-no-such-command"]) is None


@pytest.mark.parametrize(
    ("megabytes", "status", "words"),
    [
        ("0", PASSED, "default"),
        ("26000", PASSED, "27.3 GB of 34.4 GB"),
        ("8192", FAILED, "less than macOS's default"),
        ("31000", FAILED, "leaves 1.85 GB to macOS"),
        ("40000", FAILED, "leaves 0 B to macOS"),
        (None, WARNING, "does not report"),
    ],
)
def test_wired_limits(megabytes: str | None, status: CheckStatus, words: str) -> None:
    outcome = check_wired_limit(mac(wired_limit_mb=megabytes))
    assert outcome.status is status and words in outcome.detail
    if status is FAILED:
        assert outcome.advice and "sudo sysctl iogpu.wired_limit_mb=0" in outcome.advice and "28672" in outcome.advice


# What Metal was reported to recommend at the default, by the memory of the machine, in GiB.
@pytest.mark.parametrize(
    ("memory", "default"), [(8, 5.33), (16, 10.67), (16, 11.84), (24, 17.8), (36, 27.0), (64, 48.0), (128, 107.52)]
)
def test_no_default_of_macos_is_outside_of_the_range(memory: int, default: float) -> None:
    lowest, highest = wired_limit_range(memory * GIB)
    assert lowest <= (default + 0.01) * GIB and default * GIB <= highest < memory * GIB


def test_versions_of_macos() -> None:
    assert check_macos_version(mac(), (14, 0)).status is PASSED
    old = check_macos_version(mac(productVersion="13.7.1"), (14, 0))
    assert old.status is FAILED and "14.0 or newer" in old.detail and old.advice
    assert check_macos_version(mac(productVersion="14.7"), (14, 0)).status is WARNING
    assert check_macos_version(mac(productVersion="26.0"), None).status is PASSED


def test_the_version_that_mlx_is_built_for_is_read_from_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def read_text(self, name: str) -> str:
            return "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-macosx_15_0_arm64\n"

    monkeypatch.setattr(package_versions, "distribution", lambda name: Distribution())
    assert package_versions.required_macos() == (15, 0)


def test_python_for_intel() -> None:
    assert check_architecture(mac(), "arm64").status is PASSED
    translated = check_architecture(mac(proc_translated="1"), "x86_64")
    assert (
        translated.status is FAILED and "Rosetta" in translated.detail and "uv python install" in str(translated.advice)
    )
    assert check_architecture(mac(proc_translated=None), "x86_64").status is FAILED  # a Mac with an Intel processor
