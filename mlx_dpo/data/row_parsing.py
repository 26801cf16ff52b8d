"""Rows to examples: the format of a row, and the preference pairs or single completions in it.

A row's null values count as missing, since files made from tables have every column in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mlx_dpo.data.column_mapping import to_canonical_row
from mlx_dpo.data.conversations import (
    NamedValue,
    PromptAndPair,
    TextOrMessages,
    as_messages,
    check_text_or_messages,
    split_completion,
    split_pair,
)
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.json_values import check_text, json_type_name, printable
from mlx_dpo.data.messages import is_hh_dialogue
from mlx_dpo.data.row_fields import (
    has_columns,
    parse_label,
    parse_margin,
    parse_numbers,
    parse_score_columns,
    parse_template_kwargs,
    parse_tools,
)
from mlx_dpo.errors import RowError, Where
from mlx_dpo.utils.formatting import closest

_PROMPT_KEYS = ("prompt", "question", "instruction", "query", "conversations", "messages", "input")
_PAIR_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's
)
_SINGLE_COLUMNS = (
    "completion",
    "messages",
    "conversations",
)  # columns of a single completion, or of a conversation that ends with it
_KNOWN_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completions",
    "scores",
    "rankings",
    "conversations",
    "messages",
    "completion",
    "label",
)
_EXPECTED = "prompt, chosen and rejected; or chosen and rejected conversations; or prompt, completions and scores"
# Parameters of apply_chat_template that rows may not set.
_MAX_COMPLETIONS = 256


RowParser = Callable[[Any, Where], Sequence[Example]]
T = TypeVar("T")


def parse_pairs(row: Any, where: Where) -> list[Pair]:
    """The pairs of a row in any accepted format; none where all completions have equal scores. Raises `RowError`."""
    return _read(_pairs, row, where)


def parse_examples(row: Any, where: Where) -> list[Example]:
    """The pairs of a row, or its single completion. Raises `RowError`."""
    return _read(_examples, row, where)


def parse_labelled_examples(row: Any, where: Where) -> list[Example]:
    """The examples of a row, where a single completion must have a label. Raises `RowError`."""
    examples = parse_examples(row, where)
    if any(isinstance(example, Completion) and example.desirable is None for example in examples):
        hint = "true: an answer as it should be; false: one as it should not. Without labels there is --loss sft."
        raise RowError("is missing", kind="label", field="label", where=where, hint=hint)
    return examples


def parse_scored_pairs(row: Any, where: Where) -> list[Pair]:
    """The pairs of a row, whose chosen score must be above the rejected one. Raises `RowError`."""
    pairs = parse_pairs(row, where)
    for pair in pairs:
        if pair.scores is None:
            hint = "Give `score_chosen` and `score_rejected`, or `completions` with `scores`; --loss odpo needs them."
            raise RowError("the pair has no scores", kind="scores", where=where, hint=hint)
        if pair.scores[0] <= pair.scores[1]:
            message = f"the chosen answer's score is {pair.scores[0]}, the rejected one's {pair.scores[1]}"
            raise RowError(message, kind="scores", where=where, hint="--loss odpo takes the log of their difference.")
    return pairs


def _read(read: Callable[[dict[str, Any]], list[T]], row: Any, where: Where) -> list[T]:
    try:
        if not isinstance(row, dict):
            raise RowError(f"a row must be a JSON object, not {json_type_name(row)}", kind="not an object")
        return read(to_canonical_row(row))
    except RowError as error:
        error.where = where
        raise


def _examples(row: dict[str, Any]) -> list[Example]:
    single = _single(row)
    if single is None:
        return list(_pairs(row))
    answer = (single, row[single])
    prompt = _prompt(row) if single == "completion" else None
    if single == "completion" and prompt is None and isinstance(row[single], str):
        raise _missing(row, "prompt")
    hh = is_hh_dialogue(row[single]) if isinstance(row[single], str) else False
    given_prompt, completion = split_completion(prompt, answer)
    given_prompt, completion, _ = _with_system(row, given_prompt, completion, completion)
    hh = hh and not row.get("system")
    return [Completion(given_prompt, completion, parse_label(row), parse_tools(row), parse_template_kwargs(row), hh)]


def _single(row: dict[str, Any]) -> str | None:
    """The column of a row's single completion or conversation; None for a row of pairs."""
    if any(has_columns(row, key) for columns in _PAIR_COLUMNS for key in columns) or has_columns(row, "completions"):
        return None
    return next((key for key in _SINGLE_COLUMNS if has_columns(row, key)), None)


def row_format_label(row: Any) -> str:
    """A short name for the format of a row, accepted or not."""
    if not isinstance(row, dict):
        return "not an object"
    row = to_canonical_row(row)
    if columns := _pair_columns(row):
        return _pair_format_label(row, *(row[key] for key in columns))
    if has_columns(row, "completions"):
        ranked = next((key for key in ("scores", "rankings") if has_columns(row, key)), "no scores")
        return f"prompt, completions, {ranked}"
    single = _single(row)
    if single is None:
        return "unknown"
    return ("prompt, completion" if single == "completion" else single) + (
        ", label" if has_columns(row, "label") else ""
    )


def _pair_format_label(row: dict[str, Any], chosen: Any, rejected: Any) -> str:
    key, kind = _prompt_key(row), "HH text" if _is_hh_row(row, chosen, rejected) else "text"
    are_texts = isinstance(chosen, str) and isinstance(rejected, str)
    if key is None:
        return f"implicit prompt, {kind if are_texts else 'messages'}"
    prompt = row[key]
    if isinstance(prompt, list) and any(isinstance(message, dict) and "from" in message for message in prompt):
        return "ShareGPT"
    return f"{key}, chosen, rejected, {kind if are_texts and isinstance(prompt, str) else 'messages'}"


def _pairs(row: dict[str, Any]) -> list[Pair]:
    tools, kwargs = parse_tools(row), parse_template_kwargs(row)
    if columns := _pair_columns(row):
        chosen, rejected = ((key, row[key]) for key in columns)
        hh = _is_hh_row(row, chosen[1], rejected[1]) and not row.get("system")
        three = _with_system(row, *split_pair(_prompt(row), chosen, rejected))
        return [Pair(*three, tools, kwargs, hh, parse_margin(row), parse_score_columns(row))]
    if has_columns(row, "completions"):
        prompt = _prompt(row)
        if prompt is None:
            raise _missing(row, "prompt")
        return [
            Pair(*_with_system(row, *split_pair(prompt, *two)), tools, kwargs, scores=scores)
            for two, scores in _ordered(row)
        ]
    raise _no_pair(row)


def _pair_columns(row: dict[str, Any]) -> tuple[str, str] | None:
    return next((columns for columns in _PAIR_COLUMNS if has_columns(row, *columns)), None)


def _is_hh_row(row: dict[str, Any], chosen: Any, rejected: Any) -> bool:
    """Whether a row of texts is in Anthropic HH's format, by its prompt or, without one, by both conversations."""
    key = _prompt_key(row)
    texts = [chosen, rejected] if key is None else [row[key]]
    are_texts = all(isinstance(text, str) for text in (chosen, rejected, *texts))
    return are_texts and all(is_hh_dialogue(text) for text in texts)


def _prompt_key(row: dict[str, Any]) -> str | None:
    return next((key for key in _PROMPT_KEYS if row.get(key) is not None), None)


def _prompt(row: dict[str, Any]) -> tuple[str, Any] | None:
    """The column and the value of the row's prompt; None where it has none."""
    key = _prompt_key(row)
    if key is None:
        return None
    value = row[key]
    if key == "instruction" and isinstance(value, str) and has_columns(row, "input"):
        if not isinstance(row["input"], str):
            raise RowError(f"must be text, not {json_type_name(row['input'])}", kind="type", field="input")
        return key, f"{value}\n{row['input']}" if row["input"] else value
    if key == "input" and isinstance(value, dict) and "messages" in value:
        return "input.messages", value["messages"]
    return key, value


def _with_system(
    row: dict[str, Any], prompt: TextOrMessages, chosen: TextOrMessages, rejected: TextOrMessages
) -> PromptAndPair:
    system = row.get("system")
    if system is None:
        return prompt, chosen, rejected
    if not isinstance(system, str):
        raise RowError(f"must be text, not {json_type_name(system)}", kind="type", field="system")
    if not system:
        return prompt, chosen, rejected
    check_text(system, "system")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return turns, as_messages(chosen), as_messages(rejected)


def _ordered(row: dict[str, Any]) -> list[tuple[tuple[NamedValue, NamedValue], tuple[float, float] | None]]:
    """(chosen, rejected) for every two completions with different scores, and these (not for rankings)."""
    key = next((key for key in ("scores", "rankings") if has_columns(row, key)), None)
    if key is None:
        hint = "Add `scores` (higher is better) or `rankings` (1 is best); an order is not guessed."
        raise RowError("completions come without scores", kind="missing key", field="scores", hint=hint)
    completions = row["completions"]
    grades = parse_numbers(row[key], key)
    if not isinstance(completions, (list, tuple)):
        raise RowError(f"must be a list, not {json_type_name(completions)}", kind="type", field="completions")
    if not 2 <= len(completions) <= _MAX_COMPLETIONS:
        message = f"must hold 2 to {_MAX_COMPLETIONS} completions, not {len(completions)}"
        raise RowError(message, kind="completions", field="completions")
    if len(grades) != len(completions):
        message = f"{len(grades)} {key} for {len(completions)} completions"
        raise RowError(message, kind="completions", field=key)
    named = [(f"completions[{i}]", completion) for i, completion in enumerate(completions)]
    for completion in named:
        check_text_or_messages(*completion)
    better = (lambda a, b: a > b) if key == "scores" else (lambda a, b: a < b)
    n = range(len(named))
    return [
        ((named[i], named[j]), (grades[i], grades[j]) if key == "scores" else None)
        for i in n
        for j in n
        if better(grades[i], grades[j])
    ]


def _no_pair(row: dict[str, Any]) -> RowError:
    """The error for a row with neither chosen and rejected nor completions."""
    if single := _single(row):
        return RowError(
            f"a single {'completion' if single == 'completion' else 'conversation'} is not a pair",
            kind="unpaired",
            field=single,
            hint="It can be trained on with --loss kto, bco or apo_zero_unpaired where it has a `label`, or sft; "
            "a pair has `prompt`, `chosen` and `rejected`.",
        )
    for present, missing in (("rejected", "chosen"), ("chosen", "rejected")):
        if has_columns(row, present):
            return _missing(row, missing)
    error = _missing(row, "chosen")
    error.kind, error.field, error.message = "unknown shape", None, "no preference pair in this row's keys"
    return error


def _missing(row: dict[str, Any], key: str) -> RowError:
    """The error for a key that is missing or null; its hint names the row's keys and a likely typo."""
    if key in row:
        return RowError("is null", kind="missing key", field=key)
    names = [str(name) for name in row]
    listed = ", ".join(printable(name, 30) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    typos = _typos(names)
    hint = f"Keys here: {listed or 'none'}. Expected: {_EXPECTED}."
    return RowError("is missing", kind="missing key", field=key, hint=f"{typos} {hint}" if typos else hint)


def _typos(names: list[str]) -> str:
    for name in names[:100]:
        if name not in _KNOWN_COLUMNS and (match := closest(name.lower()[:40], _KNOWN_COLUMNS, cutoff=0.75)):
            return f"Did you mean `{match}` by `{printable(name, 40)}`?"
    return ""
