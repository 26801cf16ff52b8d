"""Versions of Python and of the installed packages, and what mlx-dpo requires of them by its own metadata."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

import mlx_dpo
from mlx_dpo.doctor.check import COMMAND_LINE, CheckOutcome, failed, passed, warned

OWN_NAME = "mlx-dpo"
SHOWN_PACKAGES = (
    *("mlx", "mlx-lm", "numpy", "huggingface-hub", "transformers", "tokenizers", "safetensors", "typer", "rich"),
)
_MAC_TAG = re.compile(r"-macosx_(\d+)_(\d+)_")
_GIT_TIMEOUT = 10.0  # seconds


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, by name; a package that is missing is left out."""
    versions = {"python": platform.python_version(), OWN_NAME: own_version()}
    for name in SHOWN_PACKAGES:
        if (installed := _version(name)) is not None:
            versions[name] = installed
    return versions


def own_version() -> str:
    """The version of mlx-dpo, with the git commit of a checkout or of an installation from git, where there is one."""
    commit = _checkout_commit() or _installed_commit()
    return (_version(OWN_NAME) or "unknown") + (f" ({commit})" if commit else "")


def check_python() -> CheckOutcome:
    """Whether this version of Python is supported."""
    running = platform.python_version()
    try:
        supported = metadata(OWN_NAME)["Requires-Python"] or ""
    except PackageNotFoundError:
        return warned(f"Python {running}; {OWN_NAME} is not installed", f"Install it: pip install {OWN_NAME}")
    if not SpecifierSet(supported).contains(running, prereleases=True):
        return failed(
            f"Python {running}; {supported} is needed",
            "Make an environment with a newer Python, such as `uv venv --python 3.12`, and install mlx-dpo there.",
        )
    return passed(f"Python {running}; {supported} is needed")


def check_packages() -> CheckOutcome:
    """Whether each package that mlx-dpo and mlx-lm require is installed, in a version that they accept."""
    problems: dict[str, str] = {}  # what is wrong, by the requirement to install
    names = [OWN_NAME, "mlx-lm"]
    for requirement in (requirement for name in names for requirement in _requirements(name)):
        installed = _version(requirement.name)
        if installed is None:
            problems[_installable(requirement)] = f"{requirement.name} is missing"
        elif not requirement.specifier.contains(installed, prereleases=True):
            problems[_installable(requirement)] = (
                f"{requirement.name} is {installed}, {requirement.specifier} is needed"
            )
    if problems:
        needed = " ".join(f"'{text}'" for text in problems)
        advice = f"Update them in this environment:{COMMAND_LINE}pip install --upgrade {needed}"
        return failed("; ".join(problems.values()), advice)
    return passed(", ".join(f"{name} {_version(name)}" for name in ("mlx", "mlx-lm") if _version(name)))


def required_macos() -> tuple[int, ...] | None:
    """The version of macOS that the installed mlx is built for, by the tag of its wheel; None if unknown."""
    with suppress(PackageNotFoundError):
        tag = _MAC_TAG.search(distribution("mlx").read_text("WHEEL") or "")
        return (int(tag[1]), int(tag[2])) if tag else None
    return None


def _requirements(name: str) -> list[Requirement]:
    """What a package requires on this machine, without its extras; of mlx also where an extra brings it in."""
    requirements = []
    with suppress(PackageNotFoundError):
        for text in requires(name) or ():
            with suppress(InvalidRequirement):
                requirement = Requirement(text)
                # On Linux mlx comes with an extra; the versions that work are those of macOS.
                if (
                    requirement.name == "mlx"
                    or requirement.marker is None
                    or requirement.marker.evaluate({"extra": ""})
                ):
                    requirements.append(requirement)
    return requirements


def _installable(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _checkout_commit() -> str | None:
    """The commit of the git checkout that this code runs from; None if it runs from somewhere else."""
    folder = Path(mlx_dpo.__file__).parent.parent
    if not (folder / ".git").exists() or not (folder / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.TimeoutExpired):
        run = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT)
        return run.stdout.strip() or None
    return None


def _installed_commit() -> str | None:
    """The commit that `pip install git+...` installed; None if it was installed in another way."""
    with suppress(PackageNotFoundError, ValueError):
        origin = json.loads(distribution(OWN_NAME).read_text("direct_url.json") or "{}")
        commit = origin.get("vcs_info", {}).get("commit_id") if isinstance(origin, Mapping) else None
        return str(commit)[:12] if commit else None
    return None
