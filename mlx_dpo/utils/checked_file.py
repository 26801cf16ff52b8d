"""Small JSON files of a cache, with a key and a checksum: a damaged or foreign one is not used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_dpo.utils.atomic_write import atomic_write


def read_checked(path: Path, key: str) -> dict[str, Any] | None:
    """The values that `write_checked` wrote for a key; None where there is no file, or it is damaged or another's."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("check")
        if content["key"] == key and checksum == _checksum(content):
            return {name: value for name, value in content.items() if name != "key"}
    return None


def write_checked(path: Path, key: str, values: Mapping[str, Any]) -> None:
    """Write a file. A full disk or a folder that can't be written to costs the cache, not the work.

    Args:
        path: the file.
        key: digest of all that the values depend on.
        values: what JSON can hold, by name.
    """
    content = {"key": key, **values}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps({**content, "check": _checksum(content)}) + "\n", encoding="utf-8")


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
