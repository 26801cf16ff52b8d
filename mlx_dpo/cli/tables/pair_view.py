"""An encoded example as text and as JSON: the prompt, the tokens that are trained, and the end of the turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from mlx_dpo.cli.console import stdout_console
from mlx_dpo.data.encoded_example import EncodedExample, TokenIds, TokenMask
from mlx_dpo.data.encoding_warnings import encoding_warnings
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.special_tokens import end_token_ids

PROMPT_STYLE, TRAINED_STYLE, END_STYLE = "dim", "green", "bold reverse magenta"


def completions_by_name(encoded: EncodedExample) -> dict[str, TokenIds]:
    """The trained token ids, by the names of the completions in rows."""
    names = ("chosen", "rejected") if isinstance(encoded.example, Pair) else ("completion",)
    return dict(zip(names, encoded.completions, strict=True))


def example_json(encoded: EncodedExample, tokenizer: Any) -> dict[str, Any]:
    """Token ids and texts of prompt and completions, and whether the example was truncated."""
    completions = completions_by_name(encoded)
    parts = {"prompt": encoded.prompt, **completions}
    values: dict[str, Any] = {
        name: {"tokens": len(ids), "ids": list(ids), "text": _decode(tokenizer, ids)} for name, ids in parts.items()
    }
    for name, ids in completions.items():
        values[name]["end_of_turn"] = [token_id for token_id in ids if token_id in end_token_ids(tokenizer)]
    if encoded.completion_masks is not None:
        for name, mask in zip(completions, encoded.completion_masks, strict=True):
            values[name]["trained"] = list(mask)
    warnings = [kind.key for kind in encoding_warnings(encoded)]
    return {**values, "cut": encoded.truncated, "prefix_held": encoded.prompt_is_prefix, "warnings": warnings}


def print_example(encoded: EncodedExample, tokenizer: Any, title: str, *, colors: bool) -> None:
    """Print the prompt and the completions. Without colors, trained text is marked by «» and an end of turn by ⟦⟧."""
    stdout_console.print(Text(title, "bold"), soft_wrap=True)
    stdout_console.print(_legend(colors), soft_wrap=True)
    _print_heading("prompt", f"{len(encoded.prompt):,} tokens, not trained")
    stdout_console.print(Text(_visible(_decode(tokenizer, encoded.prompt)), PROMPT_STYLE), soft_wrap=True)
    for i, (name, ids) in enumerate(completions_by_name(encoded).items()):
        mask = encoded.mask(i)
        context = f", {len(ids) - sum(mask):,} tokens of context" if not all(mask) else ""
        _print_heading(name, f"{sum(mask):,} tokens, trained{context}")
        stdout_console.print(Text.assemble(*_completion(ids, mask, tokenizer, colors)), soft_wrap=True)
    for kind in encoding_warnings(encoded):
        stdout_console.print(Text(f"\nThis row: {kind.message}. {kind.hint}", "yellow"), soft_wrap=True)


def _legend(colors: bool) -> Text:
    trained_label, end_label = ("trained", "end of turn") if colors else ("«trained»", "⟦end of turn⟧")
    return Text.assemble(
        ("prompt", PROMPT_STYLE), "  ", (trained_label, TRAINED_STYLE), "  ", (end_label, END_STYLE), "  ⏎ line break"
    )


def _print_heading(name: str, note: str) -> None:
    stdout_console.print(Text.assemble("\n", (name, "bold"), f" ({note})"))


def _completion(ids: TokenIds, mask: TokenMask, tokenizer: Any, colors: bool) -> Iterator[tuple[str, str]]:
    """Pieces of text with their styles."""
    end_ids = end_token_ids(tokenizer)
    runs = groupby(zip(ids, mask, strict=True), key=lambda item: (item[1], item[0] in end_ids))
    for (is_trained, is_end), run in runs:
        text = _visible(_decode(tokenizer, [token_id for token_id, _ in run]))
        if not is_trained:
            yield text, PROMPT_STYLE
            continue
        if not colors:
            text = f"⟦{text}⟧" if is_end else f"«{text}»"
        yield text, END_STYLE if is_end else TRAINED_STYLE


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def _visible(text: str) -> str:
    """Mark line breaks and escape control characters, so that a text can't manipulate the terminal."""
    escaped = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return escaped.replace("\n", "⏎\n")
