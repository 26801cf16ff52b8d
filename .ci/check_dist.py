#!/usr/bin/env python3
"""Check the wheel and the sdist in a folder: contents, metadata, sizes.

    python .ci/check_dist.py dist [v0.1.0]

The package in both holds exactly the files of `mlx_dpo/` that git tracks, the demo's model and pairs and the page's
assets too, and nothing of tests, caches or earlier builds. A tag has to be that of the version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2_000_000  # of a wheel or an sdist; the demo's model is 580 KB of it
IN_SDIST = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
IN_DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def tracked_files() -> set[str]:
    """The files of the package, relative to the root of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "mlx_dpo"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def differences(kind: str, names: set[str], expected: set[str]) -> list[str]:
    """What is missing and what is too much, one sentence a file."""
    missing = [f"{kind}: {name} is missing" for name in sorted(expected - names)]
    return missing + [f"{kind}: {name} does not belong there" for name in sorted(names - expected)]


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wheel_problems(file: Path, package: set[str]) -> list[str]:
    """Problems with the contents and the metadata of a wheel."""
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = f"{'-'.join(file.name.split('-')[:2])}.dist-info"
        metadata = BytesParser().parsebytes(wheel.read(f"{info}/METADATA"))
    return differences("wheel", names, package | {f"{info}/{name}" for name in IN_DIST_INFO}) + metadata_problems(
        metadata
    )


def metadata_problems(metadata: Message) -> list[str]:
    """What the metadata lacks of pyproject.toml."""
    source = project()
    expected = {
        "Name": [source["name"]],
        "Version": [source["version"]],
        "License-Expression": [source["license"]],
        "Requires-Python": [source["requires-python"]],
        "Provides-Extra": list(source["optional-dependencies"]),
        "Classifier": source["classifiers"],
    }
    return [
        f"metadata: {key} is {metadata.get_all(key)}, not {values}"
        for key, values in expected.items()
        if sorted(metadata.get_all(key) or []) != sorted(values)
    ]


def sdist_problems(file: Path, package: set[str]) -> list[str]:
    """Problems with the contents of an sdist."""
    with tarfile.open(file) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {name for name in names if not re.match(r"mlx_dpo\.egg-info/", name)}
    return differences("sdist", names, package | IN_SDIST)


def tag_problems(tag: str) -> list[str]:
    """Says if a tag is not that of the version."""
    version = project()["version"]
    return [] if tag == f"v{version}" else [f"the tag {tag} is not v{version}, the version in pyproject.toml"]


def problems(folder: Path) -> list[str]:
    """Everything that is wrong with the wheel and the sdist in a folder."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        return [f"{folder}: one wheel and one sdist are expected, there are {len(wheels)} and {len(sdists)}"]
    package = tracked_files()
    sizes = [
        f"{file.name} has {file.stat().st_size:,} bytes, more than {MAX_BYTES:,}"
        for file in (*wheels, *sdists)
        if file.stat().st_size > MAX_BYTES
    ]
    return wheel_problems(wheels[0], package) + sdist_problems(sdists[0], package) + sizes


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    for tag in sys.argv[2:]:
        found += tag_problems(tag)
    print("\n".join(found) or "The wheel and the sdist hold what they should.")
    sys.exit(bool(found))
