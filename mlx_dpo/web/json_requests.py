"""JSON that the page sends and receives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlx_dpo.errors import UserError
from mlx_dpo.utils.appended_rows import to_json_bytes

MAX_BODY_BYTES = 4_000_000


async def read_json(request: Request) -> dict[str, Any]:
    """The object that the page sent. Raises `UserError` if it is none, or too large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise UserError("the request is too large")
    try:
        body = json.loads(bytes(content))
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair can't be shown, nor saved
    except (ValueError, RecursionError):
        raise UserError("the request is not JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise UserError("the request must be an object")
    return body


def json_response(value: Mapping[str, Any]) -> Response:
    """An object as a response, also with texts that are not valid UTF-8."""
    return Response(to_json_bytes(value), media_type="application/json")
