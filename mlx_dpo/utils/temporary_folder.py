"""The folder in which mlx compiles for the CPU, which it does not choose as Python chooses its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder, and the environment variable that names it; None at the system's default."""

    path: Path
    variable: str | None


def mlx_temporary_folder() -> TemporaryFolder:
    """The folder, by the rules of C++'s `std::filesystem::temp_directory_path`; it may be missing."""
    for variable in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        if (folder := os.environ.get(variable)) is not None:
            return TemporaryFolder(Path(folder), variable)
    return TemporaryFolder(Path("/tmp"), None)
