"""Variables that rows and settings give to the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_dpo.errors import RowError, UserError

RESERVED_TEMPLATE_KWARGS = {  # parameters of apply_chat_template that rows and settings may not set
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "self"),
}


def check_template_kwargs(kwargs: Mapping[str, Any], field: str) -> None:
    """Raise `UserError` if a setting, `field`, would set what rendering sets itself."""
    if reserved := RESERVED_TEMPLATE_KWARGS & kwargs.keys():
        raise UserError(f"can't set {', '.join(sorted(reserved))}", field=field)


def parse_enable_thinking(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `enable_thinking` column of a row as a variable for the chat template. Raises `RowError`."""
    value = row.get("enable_thinking")
    if value is None:
        return {}
    if not isinstance(value, bool):
        raise RowError("must be true or false", kind="type", field="enable_thinking")
    return {"enable_thinking": value}
