"""Warnings about what a tokenizer and its chat template make of rows."""

from __future__ import annotations

from mlx_dpo.data.data_warnings import WarningKind
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Pair

EQUAL_TOKENS = WarningKind(
    "equal_tokens",
    "chosen and rejected differ, but become the same tokens under the chat template",
    "Nothing can be learned from them: leave them out, or use a template that renders what they differ in.",
)
PROMPT_CUT = WarningKind(
    "prompt_cut",
    "the prompt lost tokens to --max-length",
    "Raise --max-length, or leave such rows out with --overlong drop.",
)
COMPLETION_CUT = WarningKind(
    "completion_cut",
    "a completion lost its end to --max-length",
    "Raise --max-length, or leave such rows out with --overlong drop.",
)
SPECIAL_TOKENS = WarningKind(
    "special_tokens",
    "the texts contain the model's special tokens, as if a chat template had been applied already",
    "Use --raw for texts that are rendered already.",
)
EMPTY_THINKING = WarningKind(
    "empty_thinking",
    "the template puts an empty block of thinking before the answer, and it is trained",
    "If the model should answer without thinking, --chat-template-kwargs '{\"enable_thinking\": false}' makes the "
    "block part of the prompt.",
)
THINKING_LOST = WarningKind(
    "thinking_lost",
    "an answer's thinking is left out by the template, and not trained",
    "`mlx-dpo data show` shows what is trained.",
)
EARLIER_THINKING_LOST = WarningKind(
    "earlier_thinking_lost",
    "the template leaves out the thinking of earlier assistant turns",
    "That is how it renders conversations; to train that thinking, give each such turn a row of its own.",
)
THINKING_CONTRADICTION = WarningKind(
    "thinking_contradiction",
    "enable_thinking is false, but the answer has thinking: it is trained after a prompt without it",
    "Remove `enable_thinking` or the thinking.",
)
UNCLOSED_THINKING = WarningKind(
    "unclosed_thinking",
    "the generation prompt begins a block of thinking that a completion does not close",
    "Write completions as the model does: thinking, </think>, answer.",
)
CONTEXT_IN_COMPLETION = WarningKind(
    "context_in_completion",
    "completions contain turns of others, such as results of tools; they are context and not trained",
    "`mlx-dpo data show` shows which tokens are trained.",
)
PROMPT_NOT_PREFIX = WarningKind(
    "prompt_not_prefix",
    "the template renders the prompt differently once it is answered; it is trained as it is generated from",
    "`mlx-dpo data show` shows it.",
)
TOKEN_SPANS_PROMPT_END = WarningKind(
    "token_spans_prompt_end",
    "a token spans the prompt's end, so the completion does not begin as in running text",
    "End prompts without a space, and begin completions with it.",
)
IGNORED_FIELDS = {
    field: WarningKind(
        f"ignored_{field}",
        f"the chat template ignores `{field}`",
        "Use a template that renders it, or remove it.",
    )
    for field in ("tools", "tool_calls", "reasoning_content", "system")
}

ENCODING_WARNINGS = {
    kind.key: kind
    for kind in (
        PROMPT_CUT,
        COMPLETION_CUT,
        EQUAL_TOKENS,
        PROMPT_NOT_PREFIX,
        TOKEN_SPANS_PROMPT_END,
        SPECIAL_TOKENS,
        EMPTY_THINKING,
        THINKING_LOST,
        EARLIER_THINKING_LOST,
        THINKING_CONTRADICTION,
        UNCLOSED_THINKING,
        CONTEXT_IN_COMPLETION,
        *IGNORED_FIELDS.values(),
    )
}


def encoding_warnings(encoded: EncodedExample) -> list[WarningKind]:
    """The warnings that apply to an encoded example, in the order of `ENCODING_WARNINGS`."""
    keys = set(encoded.findings)
    if encoded.prompt_tokens_cut:
        keys.add(PROMPT_CUT.key)
    if any(encoded.completion_tokens_cut):
        keys.add(COMPLETION_CUT.key)
    if encoded.completion_masks is not None:
        keys.add(CONTEXT_IN_COMPLETION.key)
    example = encoded.example
    if isinstance(example, Pair) and example.chosen != example.rejected and encoded.chosen == encoded.rejected:
        keys.add(EQUAL_TOKENS.key)
    return [kind for key, kind in ENCODING_WARNINGS.items() if key in keys]
