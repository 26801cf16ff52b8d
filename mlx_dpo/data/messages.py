"""Chat messages as people write them, made one thing: a list of {"role": ..., "content": ..., and what else it had}.

Errors are `RowError`s without a location; `parse_examples` adds it.
"""

from __future__ import annotations

import re
from typing import Any

from mlx_dpo.data.json_values import check_json, check_text, json_type_name, printable
from mlx_dpo.data.tool_calls import decode_arguments, make_tool_call, parse_call_text
from mlx_dpo.errors import RowError
from mlx_dpo.utils.common_prefix import common_prefix_length

Message = dict[str, Any]
SYSTEM_ROLES = ("system", "developer")

# Names that no chat template knows, and the role they mean: as a `role`, and as ShareGPT's `from`.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"}
_SHAREGPT_ROLES = {
    **_ROLES,
    **{role: role for role in ("user", "assistant", "system", "tool", "developer")},
    **{"observation": "tool", "function": "tool", "function_call": "assistant"},
}
# What an assistant turn may carry instead of a content.
_CONTENT_ALTERNATIVES = ("tool_calls", "reasoning_content", "reasoning", "thinking")
_TEXT_ONLY = 'Only text can be trained on: a part looks like {"type": "text", "text": "..."}.'
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio", "file")
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
        value = _from_sharegpt(value, field)
    role = value.get("role")
    if not isinstance(role, str) or not role:
        problem = (
            "is missing" if role is None else "is empty" if role == "" else f"must be text, not {json_type_name(role)}"
        )
        raise RowError(problem, kind="role", field=f"{field}.role", hint="Each message needs `role` and `content`.")
    check_text(role, f"{field}.role")
    if len(value) != 2 or "content" not in value:
        value = _parse_other_keys(value, field)
    if isinstance(value.get("content"), (list, tuple)):
        value = _merge_parts(value, field)
    return {**value, "role": _ROLES.get(role, role), "content": _parse_content(value, field)}


def _from_sharegpt(value: dict[str, Any], field: str) -> Message:
    if len(value) == 2 and "value" in value and value["from"] != "function_call":
        return {"role": _sharegpt_role(value["from"], field), "content": value["value"]}
    message = {"role": _sharegpt_role(value["from"], field), "content": value.get("value"), **value}
    del message["from"]
    message.pop("value", None)
    is_call = value["from"] == "function_call" and isinstance(value.get("value"), str)
    if is_call and (calls := parse_call_text(value["value"])):
        message |= {"content": "", "tool_calls": calls}
    return message


def _parse_other_keys(value: dict[str, Any], field: str) -> Message:
    """A message's keys beside role and content, checked; nulls are absent, and calls are made OpenAI's present form."""
    # datasets' files hold every key of the union, most of them null
    message = {key: item for key, item in value.items() if item is not None}
    if "tool_calls" in message:
        message["tool_calls"] = decode_arguments(message["tool_calls"])
    call = message.get("function_call")  # OpenAI's before there were tools
    if isinstance(call, dict) and isinstance(call.get("name"), str) and not message.get("tool_calls"):
        del message["function_call"]
        message["tool_calls"] = [make_tool_call(call)]
    check_json(message, field)
    return message


def _sharegpt_role(name: Any, field: str) -> str:
    role = _SHAREGPT_ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        shown = f"`{printable(name)}`" if isinstance(name, str) else json_type_name(name)
        hint = "Known are human, user, gpt, assistant, model, bot, system, tool, observation and function."
        raise RowError(f"{shown} is not a speaker's name", kind="role", field=f"{field}.from", hint=hint)
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
    raise RowError(f"must be text, not {json_type_name(content)}", kind="content", field=f"{field}.content")


def _merge_parts(message: Message, field: str) -> Message:
    """A message whose content was a list of parts: their texts, reasoning and tool calls under the keys for these."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Any] = []
    for i, part in enumerate(message["content"]):
        name = f"{field}.content[{i}]"
        if not isinstance(part, dict):
            raise RowError("is a part of a message that is not text", kind="content", field=name, hint=_TEXT_ONLY)
        kind = part.get("type") or "text"
        text = _part_text(part, kind)
        if kind in _TEXT_PARTS and text is not None:
            texts.append(text)
        elif kind in _REASONING_PARTS and text is not None:
            reasoning.append(text)
        elif kind == "tool_call" and (parsed := parse_call_text(text or "")):
            calls += parsed
        else:
            what = f"is {kind}, not text" if kind in _MEDIA_PARTS else "is a part of a message that is not text"
            raise RowError(what, kind="content", field=name, hint=_TEXT_ONLY)
        check_text(text or "", name)
    merged = {**message, "content": "".join(texts)}
    if reasoning:
        merged["reasoning_content"] = "".join([str(message.get("reasoning_content") or ""), *reasoning])
    if calls:
        check_json(calls, field)
        merged["tool_calls"] = [*(message.get("tool_calls") or []), *calls]
    return merged


def _part_text(part: dict[str, Any], kind: Any) -> str | None:
    """The text of a part, which is under `text`, `value` (LLaMA-Factory) or the name of its kind."""
    names = ("text", "value", kind) if isinstance(kind, str) else ("text", "value")
    return next((part[name] for name in names if isinstance(part.get(name), str)), None)


def first_difference(first: tuple[str, list[Message]], second: tuple[str, list[Message]]) -> str:
    """A sentence on where two conversations part inside a turn that is not the assistant's; empty if elsewhere.

    Args:
        first: the name that messages give it, and its turns.
        second: the other one.
    """
    for i, (turn, other) in enumerate(zip(first[1], second[1], strict=False)):
        if turn == other:
            continue
        if turn["role"] != other["role"] or turn["role"] == "assistant" or turn["content"] == other["content"]:
            break
        at = common_prefix_length(turn["content"], other["content"])
        parts = (f"{_excerpt(t['content'], at)} in {name}" for t, (name, _) in ((turn, first), (other, second)))
        return f"Turn {i + 1}, of `{printable(turn['role'])}`, differs from character {at + 1} on: {', '.join(parts)}."
    return ""


def _excerpt(text: str, position: int) -> str:
    """What is around a position of a text, in quotes."""
    return printable(repr(text[max(position - 10, 0) : position + 10]), 40)


def is_empty_message(message: Message) -> bool:
    """Whether a message has nothing in it that could be trained on or answered."""
    return not message["content"].strip() and not any(message.get(key) for key in _CONTENT_ALTERNATIVES)


def is_hh_dialogue(text: str) -> bool:
    r"""Whether a text is a dialogue as Anthropic's HH writes it: \n\nHuman: ...\n\nAssistant: ..."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def parse_hh_dialogue(text: str) -> list[Message]:
    """The turns of an HH dialogue. A last `Assistant:` with nothing after it is kept, with empty content."""
    _, *parts = _HH_TURN.split(text.strip())
    names, contents = parts[::2], parts[1::2]
    roles = [_ROLES.get(name.lower(), "assistant") for name in names]
    return [{"role": role, "content": text.strip()} for role, text in zip(roles, contents, strict=True)]


def format_hh_dialogue(messages: list[Message]) -> str:
    """Turns of user and assistant as an HH dialogue again."""
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)
