"""`mlx-dpo doctor`: what it prints, its exit codes, and that no secret is in any of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_dpo.doctor import disk_folders, doctor_run, machine_facts
from mlx_dpo.doctor.check import ENGINE_GROUP, MachineCheck, passed, run_checks
from mlx_dpo.doctor.mlx_probe import MlxProbe
from mlx_dpo.doctor.system_facts import mac_system
from tests.cli.conftest import CommandResult
from tests.doctor.stand_ins import CPU, LINUX, METAL, mac

Cli = Callable[..., CommandResult]
TOKEN = "hf_SecretSecretSecretSecretSecret"
FORMS: tuple[tuple[str, ...], ...] = ((), ("--json",), ("--bug-report",))


@pytest.fixture
def this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Linux machine without a fault, with its caches in a folder; mlx is not tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine_facts, "read_system", lambda: LINUX)
    monkeypatch.setattr(machine_facts, "probe_mlx", lambda: MlxProbe(CPU))
    checks = [MachineCheck("fused attention", ENGINE_GROUP, lambda: passed("as it should be"))]
    monkeypatch.setattr(doctor_run, "run_checks_in_process", lambda source, group, progress: run_checks(checks))
    return tmp_path


@pytest.mark.usefixtures("this_machine")
def test_the_table(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("doctor", "--quick")
    assert ran.code == 0 and ran.err == "" and "this machine can train" in ran.out
    assert "\nEnvironment\npassed " in ran.out and "\nTraining engine\npassed   fused attention" in ran.out
    assert "passed   disk space" in ran.out and "17.7 GB" in ran.out and "Traceback" not in ran.out
    assert max(len(line) for line in ran.out.splitlines() if not line.startswith("    ")) <= 80


@pytest.mark.usefixtures("this_machine")
def test_json(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("doctor", "--quick", "--json")
    shown = json.loads(ran.out)
    assert ran.code == 0 and set(shown) == {"facts", "checks", "complete"} and shown["complete"] is True
    facts = {"system", "architecture", "chip", "cores", "memory_bytes", "device", "wired_limit_bytes", "versions"}
    assert set(shown["facts"]) == facts | {"folders", "compiler", "blas", "developer_tools", "hub"}
    assert shown["facts"]["device"]["usable_bytes"] == CPU.usable_bytes and shown["facts"]["versions"]["mlx"]
    assert all(set(check) == {"name", "group", "status", "detail", "advice", "seconds"} for check in shown["checks"])
    names = [check["name"] for check in shown["checks"]]
    assert len(names) == len(set(names)) > 12


@pytest.mark.usefixtures("this_machine")
def test_a_failed_check(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    ran = mlx_dpo("doctor", "--quick")
    assert ran.code == 1 and "failed   disk space" in ran.out and "1 check failed" in ran.out
    assert "disk space: A run writes checkpoints" in ran.out
    ran = mlx_dpo("doctor", "--quick", "--json")
    assert ran.code == 1 and "100 MB free" in ran.out
    assert mlx_dpo("doctor", "--quick", "--bug-report").code == 1


@pytest.mark.usefixtures("this_machine")
def test_a_mac_with_a_wrong_wired_limit(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = mac(wired_limit_mb="4096")
    monkeypatch.setattr(machine_facts, "read_system", lambda: mac_system(facts, "arm64", 10, 32 << 30))
    monkeypatch.setattr(machine_facts, "probe_mlx", lambda: MlxProbe(METAL))
    ran = mlx_dpo("doctor", "--quick")
    assert ran.code == 1 and "failed   wired limit" in ran.out and "Apple M1 Max" in ran.out
    assert "\n    sudo sysctl iogpu.wired_limit_mb=0\n" in ran.out
    assert mlx_dpo("doctor", "--quick", "--json").code == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_no_token_is_printed(
    mlx_dpo: Cli, this_machine: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...], place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (this_machine / "token").write_text(TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(this_machine / "token"))
    (this_machine / "cache").write_text("")  # a folder's name is printed with the failure
    monkeypatch.setenv("XDG_CACHE_HOME", str(this_machine / "cache" / TOKEN))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{TOKEN}@127.0.0.1:9")
    monkeypatch.setattr(machine_facts, "probe_mlx", lambda: MlxProbe(None, f"http://user:password@host {TOKEN}"))
    ran = mlx_dpo("doctor", "--quick", *form)
    assert ran.code == 1 and "logged in" in ran.out + str(json.loads(ran.out) if form == ("--json",) else "")
    for output in (ran.out, ran.err):
        joined = "".join(output.split())
        assert TOKEN not in joined and TOKEN[3:] not in joined and "password" not in joined


@pytest.mark.usefixtures("this_machine")
def test_forms_exclude_each_other(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("doctor", "--json", "--bug-report")
    assert ran.code == 2 and "choose one" in ran.err and ran.out == ""


def test_a_crash_names_the_command_for_a_bug_report(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(machine_facts, "read_machine", crash)
    ran = mlx_dpo("doctor")
    assert ran.code == 1 and "ZeroDivisionError: a fault of ours" in ran.err
    assert ran.err.rstrip().endswith("add what `mlx-dpo doctor --bug-report` prints.")


def test_where_mlx_can_not_be_imported_the_others_are_checked(tmp_path: Path) -> None:
    """mlx ends or refuses its process on some machines: `doctor` itself must not import it."""
    code = (
        "import sys; sys.modules['mlx'] = None; sys.modules['mlx.core'] = None\n"
        "from mlx_dpo.doctor import machine_facts, mlx_probe\n"
        "machine_facts.probe_mlx = lambda: mlx_probe.MlxProbe(None, 'ImportError: no mlx here')\n"
        "from mlx_dpo.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "doctor", "--quick", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1, ran.stderr
    statuses = {check["name"]: check["status"] for check in json.loads(ran.stdout)["checks"]}
    assert statuses["mlx"] == "failed" and statuses["self-tests"] == "skipped"
    assert statuses["disk space"] in ("passed", "warning")


# What Python imports at the start of every process: an mlx whose fused attention has a wrong gradient, and a numpy that
# copies where it should share memory.
WRONG_GRADIENT = """
import mlx.core as mx
correct = mx.fast.scaled_dot_product_attention
def attention(q, k, v, **options):
    output = correct(q, k, v, **options)
    return output + 0.1 * (q - mx.stop_gradient(q))
mx.fast.scaled_dot_product_attention = attention
"""
COPYING_NUMPY = """
import numpy as np
array = np.array
np.array = lambda *arguments, **options: array(*arguments, **{**options, "copy": True})
"""


@pytest.mark.parametrize(
    ("fault", "name"), [(WRONG_GRADIENT, "fused attention"), (COPYING_NUMPY, "numpy write-through")]
)
def test_a_fault_of_mlx_or_numpy_is_found_by_name(tmp_path: Path, fault: str, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(fault)
    paths = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    environment = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mlx_dpo", "doctor", "--quick", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    failed = {check["name"]: check for check in json.loads(ran.stdout)["checks"] if check["status"] == "failed"}
    assert ran.returncode == 1 and list(failed) == [name] and failed[name]["advice"]


# mlx is not tried; the check of open files, or the first self-test, makes a file and blocks.
BLOCKING = """
from mlx_dpo.cli import main
from mlx_dpo.doctor import doctor_run, environment_checks, machine_facts
from mlx_dpo.doctor.mlx_probe import MlxProbe
from tests.doctor.checks_in_a_process import hang
from tests.doctor.stand_ins import CPU
machine_facts.probe_mlx = lambda: MlxProbe(CPU)
if {blocks_here}:
    environment_checks.check_open_files = hang
doctor_run.SELF_TESTS = "tests.doctor.checks_in_a_process:HANGING"
main()
"""


def stop_while_blocked(folder: Path, blocks_here: bool, *form: str) -> tuple[int, str, str]:
    """Exit code and output of `doctor` after a Ctrl-C that reaches the whole process group, as a terminal's does."""
    paths = os.pathsep.join(path for path in (str(Path.cwd()), os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKING.format(blocks_here=blocks_here), "doctor", *form],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder, "env": environment},
        start_new_session=True,
    )
    while not (folder / "hanging").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_prints_what_is_known(tmp_path: Path, form: tuple[str, ...]) -> None:
    code, out, err = stop_while_blocked(tmp_path, True, *form)
    assert code == 130 and err == "" and "disk space" in out and "open files" not in out
    if form == ("--json",):
        assert json.loads(out)["complete"] is False
    else:
        assert "Stopped" in out


def test_ctrl_c_during_a_self_test(tmp_path: Path) -> None:
    code, out, err = stop_while_blocked(tmp_path, False)
    assert code == 130 and err == "" and "open files" in out and "hang" not in out and "failed  " not in out
