"""Nulls that a table format put into tools and tool calls.

Arrow, and so parquet and the package `datasets`, gives all objects of a list the same keys, with null for those that an
object did not have. In a tool's schema or a call's arguments such a null would be rendered and trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_MAX_DEPTH = 64  # deeper values are refused later


def without_nulls(value: Any, depth: int = 0) -> Any:
    """A JSON value without the keys whose value is null, at all depths; a null in a list stays."""
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {key: without_nulls(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item, depth + 1) if isinstance(item, (dict, list, tuple)) else item for item in value]
    return value


def strip_table_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls inside `tools` and `tool_calls`, if they are a table format's; else the row itself.

    A null that its author may have meant, such as `"default": null` in a schema, stays where nothing else shows that
    the row was in a table.
    """
    tools = row.get("tools") if isinstance(row.get("tools"), (list, tuple)) else None
    messages = {column: value for column, value in row.items() if value.__class__ is list and _has_calls(value)}
    if not messages and not tools:
        return row
    calls = [call for value in messages.values() for call in _functions(_calls(value))]
    schemas = list(_functions(tools or []))
    if not _holds_null([*calls, *schemas]) or not _is_from_table(messages.values(), calls, schemas):
        return row
    stripped = {column: [_strip_calls(message) for message in value] for column, value in messages.items()}
    return {**row, **stripped, **({"tools": without_nulls(tools)} if tools is not None else {})}


def _has_calls(messages: Iterable[Any]) -> bool:
    for message in messages:  # noqa: SIM110 - faster than any() of a generator
        if message.__class__ is dict and message.get("tool_calls"):
            return True
    return False


def _calls(messages: Iterable[Any]) -> Iterator[Any]:
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        yield from calls if isinstance(calls, (list, tuple)) else ()


def _functions(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The function of each tool or call: the object under `function`, or itself."""
    for value in values:
        if isinstance(value, dict):
            function = value.get("function")
            yield function if isinstance(function, dict) else value


def _strip_calls(message: Any) -> Any:
    if isinstance(message, dict) and message.get("tool_calls"):
        return {**message, "tool_calls": without_nulls(message["tool_calls"])}
    return message


def _holds_null(value: Any, depth: int = 0) -> bool:
    """Whether an object at any depth has a key whose value is null."""
    if depth > _MAX_DEPTH or not isinstance(value, (dict, list, tuple)):
        return False
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict) and any(item is None for item in items):
        return True
    return any(_holds_null(item, depth + 1) for item in items)


def _is_from_table(
    conversations: Iterable[Iterable[Any]], calls: list[dict[str, Any]], schemas: list[dict[str, Any]]
) -> bool:
    """Whether objects have keys that only a table format gives them."""
    if any(_share_keys(messages) for messages in conversations):
        return True
    properties = {str(schema.get("name")): _properties(schema) for schema in schemas}
    if any(value is None for schema in properties.values() for value in schema.values()):
        return True  # a property without a schema
    arguments = [
        (str(call.get("name")), call["arguments"]) for call in calls if isinstance(call.get("arguments"), dict)
    ]
    nulls = [(name, key) for name, values in arguments for key, value in values.items() if value is None]
    if any(name in properties and key not in properties[name] for name, key in nulls):
        return True  # an argument that its function does not have
    return len({name for name, _ in arguments}) > 1 and _share_keys([values for _, values in arguments])


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    parameters = schema.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return properties if isinstance(properties, dict) else {}


def _share_keys(values: Iterable[Any]) -> bool:
    """Whether several objects all have the same keys, one of which is null in some and not in others."""
    objects = [value for value in values if isinstance(value, dict)]
    if len(objects) < 2 or any(value.keys() != objects[0].keys() for value in objects):
        return False
    return any(
        0 < sum(value[key] is None for value in objects) < len(objects) for key in objects[0] if key != "content"
    )
