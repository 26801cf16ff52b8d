"""What a chat template's failure means for the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_dpo.data.messages import SYSTEM_ROLES, Message
from mlx_dpo.errors import RowError, UserError


def template_error(
    error: Exception, messages: Sequence[Message], accepts: Callable[[list[Message]], bool]
) -> UserError:
    """An error for the user.

    Args:
        error: what was raised while the template was run.
        messages: what it was run on.
        accepts: whether the template takes other messages.

    Returns:
        A `UserError` if the template itself is broken, else a `RowError`.
    """
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        message = f"the model's chat template has an error at line {error.lineno}: {error.message}"
        hint = "Repair it in the model's folder, or download the model again."
        return UserError(message, field="chat_template", hint=hint)
    lines = str(error).strip().splitlines()
    reason = lines[0][:300] if lines else type(error).__name__
    return RowError(
        f"the model's chat template refuses this row: {reason}", kind="template", hint=_hint(messages, accepts)
    )


def _hint(messages: Sequence[Message], accepts: Callable[[list[Message]], bool]) -> str:
    merged = merge_system_turns(messages)
    if len(merged) < len(messages) and accepts(merged):
        return "It takes no system turns: `mlx-dpo data fix --model MODEL` moves their text into the first user turn."
    return "Its roles in order: " + _roles(messages)


def merge_system_turns(messages: Sequence[Message]) -> list[Message]:
    """The messages with the text of leading system turns put in front of the first user turn.

    Unchanged if there is no system turn, or no user turn after it.
    """
    count = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM_ROLES), len(messages))
    rest = list(messages[count:])
    if not count or not rest or rest[0]["role"] != "user":
        return list(messages)
    texts = [message["content"] for message in (*messages[:count], rest[0])]
    return [{**rest[0], "content": "\n\n".join(text for text in texts if text)}, *rest[1:]]


def _roles(messages: Sequence[Message]) -> str:
    roles = [message["role"] for message in messages]
    return ", ".join(roles if len(roles) <= 8 else [*roles[:3], "...", *roles[-4:]])
