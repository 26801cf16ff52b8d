"""A wheel in empty environments, as a user installs it, and used from an empty folder without network.

Needs a package index, and uv and pipx of the extra dist: make test-install. WHEEL names a wheel; else one is built. All
Pythons from 3.11 to 3.13 on this machine are tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.installation

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "mlx_dpo" / "demo" / "model"
BIN = Path(sys.executable).parent
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ["3.11", "3.12", "3.13"]
MAX_SECONDS = 300  # from an empty environment to the end of the demo; 144 on two quiet cores, and machines differ
EXTRA = os.environ.get("EXTRA", "cpu" if sys.platform == "linux" else "")  # mlx's backend, as in the Makefile
PAIR = {"prompt": "How do I boil an egg?", "chosen": "For seven minutes.", "rejected": "Figure it out."}

Command = list[str | Path]
Install = Callable[[str, str, Path], Command]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Of a user's shell: nothing of this project's environment, and tools install below a folder."""
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "LD_PRELOAD", "OPENBLAS_NUM_THREADS"}
    places = {"UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "PIPX_HOME": "pipx", "PIPX_BIN_DIR": "bin"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {name: str(folder / place) for name, place in places.items()} | variables


def run(command: Command, folder: Path, **variables: str) -> str:
    """The output of a command in a folder; fails with it if the command does."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def offline(command: Command, folder: Path) -> str:
    """As run, without network: in a namespace without an interface, or else with proxies where nothing listens."""
    prefix: Command = ["unshare", "--net", "--map-root-user"]
    if sys.platform != "linux" or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        prefix = []
    nowhere = "http://127.0.0.1:9"
    return run([*prefix, *command], folder, HF_HUB_OFFLINE="1", http_proxy=nowhere, https_proxy=nowhere)


def pip_install(package: str, python: str, folder: Path) -> Command:
    run([python, "-m", "venv", folder / "venv"], folder)
    run([folder / "venv" / "bin" / "pip", "install", "--quiet", package], folder)
    return [folder / "venv" / "bin" / "mlx-dpo"]


def uv_tool_install(package: str, python: str, folder: Path) -> Command:
    run([BIN / "uv", "tool", "install", "--python", python, package], folder)
    return [folder / "bin" / "mlx-dpo"]


def uvx(package: str, python: str, folder: Path) -> Command:
    run([BIN / "uvx", "--python", python, "--from", package, "mlx-dpo", "--help"], folder)
    return [BIN / "uvx", "--offline", "--python", python, "--from", package, "mlx-dpo"]


def pipx_install(package: str, python: str, folder: Path) -> Command:
    run([BIN / "pipx", "install", "--python", python, package], folder)
    return [folder / "bin" / "mlx-dpo"]


INSTALLERS: list[Install] = [pip_install, uv_tool_install, uvx, pipx_install]
CASES = [(install, THIS_PYTHON) for install in INSTALLERS]
CASES += [(uv_tool_install, version) for version in PYTHONS if version != THIS_PYTHON]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What to install: the wheel of the variable WHEEL, or one that is built here, with the extra of mlx's backend."""
    if named := os.environ.get("WHEEL"):
        wheel = (ROOT / named).resolve()
    else:
        folder = tmp_path_factory.mktemp("dist")
        run([sys.executable, "-m", "build", "--outdir", folder, ROOT], folder)
        wheel = next(folder.glob("*.whl"))
    return f"{wheel}[{EXTRA}]" if EXTRA else str(wheel)


def find_python(version: str) -> str:
    """The path of a Python of a version; skips the test if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders = [*map(str, sorted(pyenv.glob(f"{version}.*/bin"))), os.environ["PATH"]]
    found = subprocess.run(
        [str(BIN / "uv"), "python", "find", "--no-project", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        env=environment(Path.cwd(), PATH=os.pathsep.join(folders)),
    )
    if found.returncode != 0:
        pytest.skip(f"there is no Python {version} here")
    return found.stdout.strip()


@pytest.mark.parametrize(("install", "version"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_one_line_installs_it(install: Install, version: str, package: str, tmp_path: Path) -> None:
    """Training works then, in an empty folder."""
    mlx_dpo = install(package, find_python(version), tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text((json.dumps(PAIR) + "\n") * 2)
    assert "Usage" in offline([*mlx_dpo, "--help"], folder)
    offline([*mlx_dpo, "data", "check", "pairs.jsonl"], folder)
    options = ["--data", "pairs.jsonl", "--iters", "1", "--batch-size", "1", "--adapter-path", "run"]
    offline([*mlx_dpo, "train", "--model", MODEL, *options], folder)
    assert (folder / "run" / "adapters.safetensors").exists()


@pytest.mark.parametrize("install", [pip_install, uvx], ids=lambda install: install.__name__)
def test_the_demo_is_one_line_more(install: Install, package: str, tmp_path: Path) -> None:
    start = time.monotonic()
    mlx_dpo = install(package, sys.executable, tmp_path)
    installed = time.monotonic()
    folder = tmp_path / "empty"
    folder.mkdir()
    demo = offline([*mlx_dpo, "demo"], folder)
    end = time.monotonic()
    print(f"\n{install.__name__}: installed in {installed - start:.0f} s, demo in {end - installed:.0f} s")
    assert "Polite answers" in demo
    assert {"adapters.safetensors", "report.html"} <= {file.name for file in (folder / "demo-run").iterdir()}
    if os.getloadavg()[0] < 1.5 * (os.cpu_count() or 1):  # else other programs slow it down
        assert end - start < MAX_SECONDS
