"""JSON files of one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the file is missing", where=Where(str(path))) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not valid JSON: {error}", where=Where(str(path))) from None
    if not isinstance(value, dict):
        raise UserError("a JSON object was expected", where=Where(str(path)))
    return value
