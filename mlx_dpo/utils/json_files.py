"""JSON files that hold one object, and values that JSON can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, unreadable, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the file is missing", where=Where(str(path))) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not valid JSON: {error}", where=Where(str(path))) from None
    if not isinstance(value, dict):
        raise UserError("a JSON object was expected", where=Where(str(path)))
    return value


def finite_values(value: Any) -> Any:
    """The same JSON value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_values(item) for item in value]
    return value
