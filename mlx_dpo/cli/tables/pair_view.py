"""An encoded example for people and for programs: which tokens are given, which are trained, where the turn ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from mlx_dpo.cli.console import stdout_console
from mlx_dpo.data.chat_encoding import EncodedExample, TokenIds, end_token_ids
from mlx_dpo.data.row_formats import Pair

_PROMPT, _TRAINED, _END = "dim", "green", "bold reverse magenta"


def completions_by_name(encoded: EncodedExample) -> dict[str, TokenIds]:
    """The trained tokens, by the answers' names in rows."""
    names = ("chosen", "rejected") if isinstance(encoded.example, Pair) else ("completion",)
    return dict(zip(names, encoded.completions, strict=True))


def example_json(pair: EncodedExample, tokenizer: Any) -> dict[str, Any]:
    """Ids and texts of the parts, and what happened to them."""
    answers = completions_by_name(pair)
    parts = {"prompt": pair.prompt, **answers}
    told: dict[str, Any] = {
        name: {"tokens": len(ids), "ids": list(ids), "text": _decode(tokenizer, ids)} for name, ids in parts.items()
    }
    for name in answers:
        told[name]["end_of_turn"] = [i for i in parts[name] if i in end_token_ids(tokenizer)]
    return {**told, "cut": pair.cut, "prefix_held": pair.prompt_is_prefix}


def print_example(pair: EncodedExample, tokenizer: Any, title: str, *, colours: bool) -> None:
    """The prompt, then the answers. Without colours, trained text stands in «» and an end of turn in ⟦⟧."""
    stdout_console.print(Text(title, "bold"), soft_wrap=True)
    stdout_console.print(_legend(colours), soft_wrap=True)
    _heading("prompt", f"{len(pair.prompt):,} tokens, given")
    stdout_console.print(Text(_visible(_decode(tokenizer, pair.prompt)), _PROMPT), soft_wrap=True)
    for name, ids in completions_by_name(pair).items():
        _heading(name, f"{len(ids):,} tokens, trained")
        stdout_console.print(Text.assemble(*_answer(ids, tokenizer, colours)), soft_wrap=True)
    if pair.cut:
        stdout_console.print(Text("\nToo long for --max-length: tokens were cut.", "yellow"))
    if not pair.prompt_is_prefix:
        stdout_console.print(
            Text("\nThe prompt as rendered for generation is not how prompt and answer together begin:", "yellow"),
            Text("what is trained starts where they part.", "yellow"),
        )


def _legend(colours: bool) -> Text:
    trained, end = ("trained", "end of turn") if colours else ("«trained»", "⟦end of turn⟧")
    return Text.assemble(("prompt", _PROMPT), "  ", (trained, _TRAINED), "  ", (end, _END), "  ⏎ line break")


def _heading(name: str, note: str) -> None:
    stdout_console.print(Text.assemble("\n", (name, "bold"), f" ({note})"))


def _answer(ids: Sequence[int], tokenizer: Any, colours: bool) -> Iterator[tuple[str, str]]:
    ends = end_token_ids(tokenizer)
    for is_end, run in groupby(ids, key=lambda i: i in ends):
        text = _visible(_decode(tokenizer, list(run)))
        if not colours:
            text = f"⟦{text}⟧" if is_end else f"«{text}»"
        yield text, _END if is_end else _TRAINED


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def _visible(text: str) -> str:
    """Line breaks marked and control characters escaped, so that a text can't play tricks on the terminal."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return shown.replace("\n", "⏎\n")
