"""Tool calls as people write them, made OpenAI's: {"type": "function", "function": {"name": ..., "arguments": {...}}}.

Chat templates and mlx-lm's server take `arguments` as an object; OpenAI's API gives them as JSON text.
"""

from __future__ import annotations

import json
from typing import Any

ToolCall = dict[str, Any]


def decode_arguments(calls: Any) -> Any:
    """Tool calls with `arguments` parsed if they are the JSON text of an object; anything else unchanged."""
    if not isinstance(calls, (list, tuple)):
        return calls
    return [_decode_call(call) if isinstance(call, dict) else call for call in calls]


def parse_call_text(text: str) -> list[ToolCall] | None:
    """The tool calls in a text, the JSON of a call or of a list of them; None where it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [make_tool_call(call) for call in calls]


def make_tool_call(function: dict[str, Any]) -> ToolCall:
    """A tool call from its `name` and `arguments`, with `type` and `function` around them."""
    return {"type": "function", "function": _decode_function(function)}


def _decode_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        decoded = _decode_function(function)
        return call if decoded is function else {**call, "function": decoded}
    return _decode_function(call)


def _decode_function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        decoded = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):  # what a model wrote that is not JSON stays text
        return function
    return {**function, "arguments": decoded} if isinstance(decoded, dict) else function
