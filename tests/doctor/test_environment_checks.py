"""Planted faults of the machine: each is found by name, with what to do."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_dpo.doctor import backend_checks, disk_folders, hub_checks, machine_facts, mlx_probe, package_versions
from mlx_dpo.doctor.check import CheckOutcome, CheckStatus, run_checks
from mlx_dpo.doctor.environment_checks import environment_checks
from mlx_dpo.doctor.machine_facts import MachineFacts, read_machine
from mlx_dpo.doctor.mlx_probe import MlxProbe
from tests.doctor.stand_ins import CPU, LINUX, mac_machine, machine
from tests.hub.server import USER, Hub

PASSED, WARNING, FAILED, SKIPPED = CheckStatus


def outcomes(facts: MachineFacts) -> dict[str, CheckOutcome]:
    return {result.name: result.outcome for result in run_checks(environment_checks(facts))}


def not_passed(facts: MachineFacts) -> dict[str, CheckStatus]:
    return {
        name: outcome.status
        for name, outcome in outcomes(facts).items()
        if outcome.status is not PASSED and name not in ("hub", "hub login")
    }


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory of a Linux machine, with the caches in it; mlx is not tried."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine_facts, "read_system", lambda: LINUX)
    monkeypatch.setattr(machine_facts, "probe_mlx", lambda: MlxProbe(CPU))
    monkeypatch.setattr(machine_facts, "preloaded_blas", lambda: "OpenBLAS")
    monkeypatch.setattr(machine_facts, "find_compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(disk_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=80_000_000_000))
    return tmp_path


def test_a_machine_without_a_fault(here: Path) -> None:
    assert not_passed(read_machine()) == not_passed(machine()) == not_passed(mac_machine()) == {}
    assert not any(here.iterdir())  # nothing is left, and no cache was made


def test_a_mac_has_checks_of_its_own() -> None:
    assert {"architecture", "macos", "wired limit"} <= set(outcomes(mac_machine()))
    assert not_passed(mac_machine("x86_64", proc_translated="1", wired_limit_mb="4096", productVersion="14.1")) == {
        "architecture": FAILED,
        "macos": WARNING,
        "wired limit": FAILED,
    }


def test_100_mb_of_free_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    found = outcomes(read_machine())["disk space"]
    assert found.status is FAILED and "100 MB free" in found.detail
    assert found.advice and "10 MB to 1 GB" in found.advice and "HF_HOME" in found.advice
    monkeypatch.setattr(disk_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    assert not_passed(read_machine()) == {"disk space": WARNING}


@pytest.mark.parametrize(
    ("name", "variable", "place"), [("mlx-dpo cache", "XDG_CACHE_HOME", "cache"), ("hub cache", "HF_HOME", "hub")]
)
def test_a_cache_that_can_not_be_written_to(here: Path, name: str, variable: str, place: str) -> None:
    (here / place).write_text("a file where a folder should be")
    found = outcomes(dataclasses.replace(read_machine(), is_offline=False))[name]
    assert found.status is FAILED and "not a directory" in found.detail and variable in str(found.advice)
    assert not_passed(read_machine()) == ({name: FAILED} if place == "cache" else {})  # offline it need not be


def test_a_cache_that_is_a_link_to_nowhere(here: Path) -> None:
    (here / "cache").symlink_to(here / "missing")
    assert not_passed(read_machine()) == {"mlx-dpo cache": FAILED}


def test_a_read_only_cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = disk_folders.tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        if dir == here / "cache" / "mlx-dpo":
            raise OSError(30, os.strerror(30))
        return write(dir=dir)

    (here / "cache" / "mlx-dpo").mkdir(parents=True)
    monkeypatch.setattr(disk_folders.tempfile, "TemporaryFile", refuse)  # tests may run as root, who may write anywhere
    assert not_passed(read_machine()) == {"mlx-dpo cache": FAILED}
    assert "read-only file system" in outcomes(read_machine())["mlx-dpo cache"].detail


def test_everything_is_looked_at_where_home_and_working_directory_are_unusable(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "file" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(here / "file" / "token"))
    (here / "deleted").mkdir()
    monkeypatch.chdir(here / "deleted")
    (here / "deleted").rmdir()
    assert not_passed(read_machine()) == {"working directory": WARNING, "mlx-dpo cache": FAILED}


def test_a_temporary_folder_that_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(here / "missing"))
    found = outcomes(read_machine())["temporary folder"]
    assert found.status is FAILED and f"TMPDIR={here}/missing is not a folder" in found.detail
    assert found.advice == "Set TMPDIR to a folder, or unset it."
    if sys.platform == "linux":  # elsewhere mlx compiles nothing there
        assert "temporary folder" in str(backend_checks.check_mlx(mlx_probe.probe_mlx(), is_mac=False).advice)


def test_no_compiler(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_facts, "find_compiler", backend_checks.find_compiler)
    monkeypatch.setenv("PATH", str(here))
    assert not_passed(read_machine()) == {"compiler": WARNING}
    assert "apt-get install g++" in str(outcomes(read_machine())["compiler"].advice)


def test_a_slow_blas(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_facts, "preloaded_blas", lambda: None)
    monkeypatch.setattr(backend_checks, "_installed_openblas", lambda: iter([Path("/usr/lib/libblas.so.3")]))
    assert "export LD_PRELOAD=/usr/lib/libblas.so.3" in str(outcomes(read_machine())["blas"].advice)
    monkeypatch.setattr(backend_checks, "_installed_openblas", lambda: iter([]))
    assert not_passed(read_machine()) == {"blas": WARNING}
    assert "apt-get install" in str(outcomes(read_machine())["blas"].advice)


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
def test_openblas_is_recognized_where_it_is_loaded() -> None:
    libraries = list(backend_checks._installed_openblas())
    if not libraries:
        pytest.skip("OpenBLAS is not installed")
    code = "from mlx_dpo.doctor.backend_checks import preloaded_blas; print(preloaded_blas())"
    for preload, name in (("", "None"), (str(libraries[0]), "OpenBLAS")):
        environment = {**os.environ, "LD_PRELOAD": preload}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stdout.strip() == name


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (128, 1024))
    assert not_passed(machine()) == {"open files": WARNING}


def test_little_memory_and_a_wrong_product() -> None:
    small = dataclasses.replace(CPU, usable_bytes=2_000_000_000)
    assert not_passed(machine(probe=MlxProbe(small))) == {"memory": WARNING}
    assert not_passed(machine(probe=MlxProbe(dataclasses.replace(CPU, can_compute=False)))) == {"mlx": FAILED}
    broken = not_passed(machine(probe=MlxProbe(None, "ended by SIGILL")))
    assert broken == {"mlx": FAILED, "memory": SKIPPED}


def test_a_mac_without_its_gpu() -> None:
    facts = dataclasses.replace(mac_machine(), mlx=MlxProbe(CPU))
    assert not_passed(facts) == {"mlx": WARNING}


def test_mlx_that_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_probe, "__name__", "tests.doctor.aborting_module")
    probe = mlx_probe.probe_mlx()
    assert probe.facts is None and "ended by SIGABRT: no GPU was found" in str(probe.problem)


def test_versions_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(name: str) -> str:
        if name == "pyyaml":
            raise PackageNotFoundError(name)
        return {"mlx": "0.31.0", "mlx-lm": "0.32.1"}.get(name) or version(name)

    monkeypatch.setattr(package_versions, "version", changed)
    found = package_versions.check_packages()
    assert found.status is FAILED
    for words in ("mlx is 0.31.0, >=", "mlx-lm is 0.32.1, >=", "pyyaml is missing"):
        assert words in found.detail
    assert "pip install --upgrade 'mlx>=" in str(found.advice)


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_versions.platform, "python_version", lambda: "3.9.6")
    assert not_passed(machine()) == {"python": FAILED}


class TestHub:
    def check(self) -> tuple[CheckOutcome, CheckOutcome]:
        checks = hub_checks.HubChecks()
        return checks.check_reach(), checks.check_login()

    def test_logged_in(self, hub: Hub) -> None:
        reach, login = self.check()
        assert reach.status is login.status is PASSED and login.detail == f"logged in as {USER}"
        assert hub_checks.HubChecks(shows_user=False).check_login().detail == "logged in"

    def test_a_token_that_is_not_accepted(self, hub: Hub) -> None:
        hub.inject_fault("GET", "whoami", status=401)
        _, login = self.check()
        assert login.status is WARNING and "does not accept your token" in login.detail and login.advice

    def test_not_logged_in(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        assert self.check()[1].status is WARNING
        assert hub.count_requests("GET", "whoami") == 0

    def test_offline_nothing_is_asked(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        reach, login = self.check()
        assert reach.status is SKIPPED and login.detail == "logged in; the token was not tried"
        assert hub.requests == []

    def test_nobody_answers(self, hub: Hub) -> None:
        hub.close()
        reach, login = self.check()
        assert reach.status is WARNING and "can't be reached" in reach.detail and login.status is PASSED

    def test_a_silent_name_server_does_not_hold_it_up(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        ended = threading.Event()
        monkeypatch.setattr(hub_checks, "WAIT_TIMEOUT", 0.05)
        monkeypatch.setattr(hub_checks, "_request_head", ended.wait)
        assert "does not answer" in self.check()[0].detail
        ended.set()


def test_disk_usage_is_that_of_the_folder_above(tmp_path: Path) -> None:
    folder = disk_folders.read_folder("cache", tmp_path / "a" / "b")
    assert (
        folder.problem is None and folder.free_bytes and abs(folder.free_bytes - shutil.disk_usage(tmp_path).free) < 1e9
    )
