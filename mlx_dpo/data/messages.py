"""Chat messages as people write them, made one thing: a list of {"role": ..., "content": ..., and what else it had}.

Every complaint here is a `RowError` without a place; `pairs_of` adds it.
"""

from __future__ import annotations

import re
from typing import Any

from mlx_dpo.data.json_values import check_json, check_text, json_type_name, printable
from mlx_dpo.errors import RowError

Message = dict[str, Any]

# Names that no chat template knows, and the role they stand for: as a `role`, and as ShareGPT's `from`.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"}
_SHAREGPT_ROLES = {
    **_ROLES,
    **{role: role for role in ("user", "assistant", "system", "tool", "developer")},
    **{"observation": "tool", "function": "tool", "function_call": "assistant"},
}
# What an assistant turn may carry instead of a content.
_CONTENT_ALTERNATIVES = ("tool_calls", "reasoning_content", "reasoning", "thinking")
_TEXT_ONLY = 'Only text can be trained on: a part looks like {"type": "text", "text": "..."}.'
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def parse_messages(value: Any, field: str) -> list[Message]:
    """Messages from a list of them or from a single one; `from`/`value` (ShareGPT) or `role`/`content`."""
    if isinstance(value, dict):
        return [_parse_message(value, field)]
    if not isinstance(value, (list, tuple)):
        raise RowError(f"must be text or messages, not {json_type_name(value)}", kind="type", field=field)
    if not value:
        raise RowError("is an empty list", kind="empty", field=field)
    return [_parse_message(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _parse_message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"a message must be an object, not {json_type_name(value)}", kind="type", field=field)
    if "role" not in value and "from" in value:
        value = {"role": _sharegpt_role(value["from"], field), "content": value.get("value"), **value}
        del value["from"]
        value.pop("value", None)
    role = value.get("role")
    if not isinstance(role, str) or not role:
        problem = (
            "is missing" if role is None else "is empty" if role == "" else f"must be text, not {json_type_name(role)}"
        )
        raise RowError(problem, kind="role", field=f"{field}.role", hint="Each message needs `role` and `content`.")
    check_text(role, f"{field}.role")
    if value.keys() != {"role", "content"}:
        # datasets' files hold every key of the union, most of them null
        value = {key: item for key, item in value.items() if item is not None}
        check_json(value, field)
    return {**value, "role": _ROLES.get(role, role), "content": _parse_content(value, field)}


def _sharegpt_role(name: Any, field: str) -> str:
    role = _SHAREGPT_ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        shown = f"`{printable(name)}`" if isinstance(name, str) else json_type_name(name)
        hint = "Known are human, user, gpt, assistant, model, bot, system, tool, observation and function."
        raise RowError(f"{shown} is no speaker's name", kind="role", field=f"{field}.from", hint=hint)
    return role


def _parse_content(message: Message, field: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        check_text(content, f"{field}.content")
        return content
    if content is None:
        if any(message.get(key) for key in _CONTENT_ALTERNATIVES):
            return ""
        hint = "Each message needs `role` and `content`."
        raise RowError("is missing", kind="content", field=f"{field}.content", hint=hint)
    if isinstance(content, (list, tuple)):
        return "".join(_parse_content_part(part, f"{field}.content[{i}]") for i, part in enumerate(content))
    raise RowError(f"must be text, not {json_type_name(content)}", kind="content", field=f"{field}.content")


def _parse_content_part(part: Any, field: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise RowError("is a part of a message that is not text", kind="content", field=field, hint=_TEXT_ONLY)
    check_text(text, field)
    return text


def is_empty_message(message: Message) -> bool:
    """Whether a message has nothing in it that could be trained on or answered."""
    return not message["content"].strip() and not any(message.get(key) for key in _CONTENT_ALTERNATIVES)


def is_hh_dialogue(text: str) -> bool:
    r"""Whether a text is a dialogue as Anthropic's HH writes it: \n\nHuman: ...\n\nAssistant: ..."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def parse_hh_dialogue(text: str) -> list[Message]:
    """The turns of an HH dialogue. A last `Assistant:` with nothing behind it is kept, with empty content."""
    _, *parts = _HH_TURN.split(text.strip())
    names, contents = parts[::2], parts[1::2]
    roles = [_ROLES.get(name.lower(), "assistant") for name in names]
    return [{"role": role, "content": text.strip()} for role, text in zip(roles, contents, strict=True)]


def format_hh_dialogue(messages: list[Message]) -> str:
    """Turns of user and assistant as an HH dialogue again."""
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)
