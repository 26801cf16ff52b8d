"""Prompts and completions of any row as HTML, with all that their turns hold."""

from __future__ import annotations

import json
from typing import Any

from mlx_dpo.data.conversations import TextOrMessages, as_messages, prompt_messages
from mlx_dpo.data.messages import Message
from mlx_dpo.web.markdown_html import markdown_to_html

_REASONING = ("reasoning_content", "reasoning", "thinking")


def prompt_turns(prompt: TextOrMessages, tools: list[Any] | None = None) -> list[tuple[str, str]]:
    """The turns of a prompt as (role, HTML); before them the tools that the model could call, if any."""
    turns = [
        (str(message["role"]), markdown_to_html(_markdown(message))) for message in prompt_messages("prompt", prompt)
    ]
    return [*([("tools", markdown_to_html(_code(tools)))] if tools else []), *turns]


def completion_html(completion: TextOrMessages) -> str:
    """A completion as HTML."""
    messages = as_messages(completion)
    if len(messages) == 1:
        return markdown_to_html(_markdown(messages[0]))
    return "".join(
        markdown_to_html(f"**{message['role']}**") + markdown_to_html(_markdown(message)) for message in messages
    )


def _markdown(message: Message) -> str:
    """All that a turn has, reasoning and tool calls too."""
    reasoning = [str(message[name]) for name in _REASONING if message.get(name)]
    quoted = ["> " + text.replace("\n", "\n> ") for text in reasoning]
    calls = [_code(message["tool_calls"])] if message.get("tool_calls") else []
    return "\n\n".join([*quoted, str(message.get("content") or ""), *calls])


def _code(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"
