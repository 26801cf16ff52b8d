"""Rows to examples: which shape a row has, and the preference pairs or single completions in it.

A row's null values count as absent, since files that were made from tables hold every column in every row.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
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
from mlx_dpo.data.examples import SCORE_COLUMNS, Completion, Example, Pair
from mlx_dpo.data.json_values import check_json, check_text, json_type_name, printable
from mlx_dpo.data.messages import is_hh_dialogue
from mlx_dpo.errors import RowError, Where

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
)  # of a row of one answer: itself, or the conversation it ends
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
# The rest of apply_chat_template's parameters is ours to set.
_RESERVED_TEMPLATE_KWARGS = {
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "self"),
}
_MAX_COMPLETIONS = 256


RowParser = Callable[[Any, Where], Sequence[Example]]  # what a row is read by
T = TypeVar("T")


def parse_pairs(row: Any, where: Where) -> list[Pair]:
    """The pairs of a row in any accepted shape; none where all its completions are scored alike. Raises `RowError`."""
    return _read(_pairs, row, where)


def parse_examples(row: Any, where: Where) -> list[Example]:
    """The pairs of a row, or the one completion that it is. Raises `RowError`."""
    return _read(_examples, row, where)


def parse_labelled_examples(row: Any, where: Where) -> list[Example]:
    """As `examples_of`, where a single completion has a label. Raises `RowError`."""
    examples = parse_examples(row, where)
    if any(isinstance(one, Completion) and one.desirable is None for one in examples):
        hint = "true: an answer as it should be; false: one as it should not. Without labels there is --loss sft."
        raise RowError("is missing", kind="label", field="label", where=where, hint=hint)
    return examples


def parse_scored_pairs(row: Any, where: Where) -> list[Pair]:
    """As `pairs_of`, where the chosen answer's score is above the rejected one's. Raises `RowError`."""
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
    asked, completion = split_completion(prompt, answer)
    asked, completion, _ = _with_system(row, asked, completion, completion)
    hh = hh and not row.get("system")
    return [Completion(asked, completion, _label(row), _tools(row), _template_kwargs(row), hh)]


def _single(row: dict[str, Any]) -> str | None:
    """The key of the one answer of a row, or of the one conversation, where it is no row of pairs."""
    if any(_has(row, key) for sides in _PAIR_COLUMNS for key in sides) or _has(row, "completions"):
        return None
    return next((key for key in _SINGLE_COLUMNS if _has(row, key)), None)


def _label(row: dict[str, Any]) -> bool | None:
    label = row.get("label")
    if label is None or isinstance(label, bool):
        return label
    if isinstance(label, int) and label in (0, 1):
        return bool(label)
    hint = "true: an answer as it should be; false: one as it should not."
    raise RowError(
        f"must be true or false, not {printable(json.dumps(label), 30)}", kind="label", field="label", hint=hint
    )


def row_format_label(row: Any) -> str:
    """A short name for the shape of a row, accepted or not."""
    if not isinstance(row, dict):
        return "not an object"
    row = to_canonical_row(row)
    if sides := _sides(row):
        return _shape_of_sides(row, *(row[key] for key in sides))
    if _has(row, "completions"):
        ranked = next((key for key in ("scores", "rankings") if _has(row, key)), "no scores")
        return f"prompt, completions, {ranked}"
    single = _single(row)
    if single is None:
        return "unknown"
    return ("prompt, completion" if single == "completion" else single) + (", label" if _has(row, "label") else "")


def _shape_of_sides(row: dict[str, Any], chosen: Any, rejected: Any) -> str:
    key = _prompt_key(row)
    all_text = isinstance(chosen, str) and isinstance(rejected, str)
    if key is None:
        if all_text:
            return "implicit prompt, " + ("HH text" if is_hh_dialogue(chosen) and is_hh_dialogue(rejected) else "text")
        return "implicit prompt, messages"
    prompt = row[key]
    if isinstance(prompt, list) and any(isinstance(m, dict) and "from" in m for m in prompt):
        return "ShareGPT"
    if all_text and isinstance(prompt, str):
        return f"{key}, chosen, rejected, " + ("HH text" if is_hh_dialogue(prompt) else "text")
    return f"{key}, chosen, rejected, messages"


def _pairs(row: dict[str, Any]) -> list[Pair]:
    tools, kwargs = _tools(row), _template_kwargs(row)
    if sides := _sides(row):
        chosen, rejected = ((key, row[key]) for key in sides)
        hh = "HH" in row_format_label(row) and not row.get("system")
        three = _with_system(row, *split_pair(_prompt(row), chosen, rejected))
        return [Pair(*three, tools, kwargs, hh, _margin(row), _scores(row))]
    if _has(row, "completions"):
        prompt = _prompt(row)
        if prompt is None:
            raise _missing(row, "prompt")
        return [
            Pair(*_with_system(row, *split_pair(prompt, *two)), tools, kwargs, scores=scores)
            for two, scores in _ordered(row)
        ]
    raise _no_pair(row)


def _has(row: Mapping[str, Any], *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)


def _sides(row: dict[str, Any]) -> tuple[str, str] | None:
    return next((sides for sides in _PAIR_COLUMNS if _has(row, *sides)), None)


def _prompt_key(row: dict[str, Any]) -> str | None:
    return next((key for key in _PROMPT_KEYS if row.get(key) is not None), None)


def _prompt(row: dict[str, Any]) -> tuple[str, Any] | None:
    """The name and the value of the row's prompt, if it has one."""
    key = _prompt_key(row)
    if key is None:
        return None
    value = row[key]
    if key == "instruction" and isinstance(value, str) and _has(row, "input"):
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
    """(chosen, rejected) for every two completions that were not judged alike, and their scores (not their ranks)."""
    key = next((key for key in ("scores", "rankings") if _has(row, key)), None)
    if key is None:
        hint = "Add `scores` (higher is better) or `rankings` (1 is best); an order is not guessed."
        raise RowError("completions come without scores", kind="missing key", field="scores", hint=hint)
    completions = row["completions"]
    grades = _numbers(row[key], key)
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


def _margin(row: dict[str, Any]) -> float | None:
    return None if row.get("margin") is None else _number(row["margin"], "margin")


def _scores(row: dict[str, Any]) -> tuple[float, float] | None:
    found = next((names for names in SCORE_COLUMNS if _has(row, *names)), None)
    return None if found is None else (_number(row[found[0]], found[0]), _number(row[found[1]], found[1]))


def _numbers(values: Any, name: str) -> list[float]:
    if not isinstance(values, (list, tuple)):
        raise RowError(f"must be a list of numbers, not {json_type_name(values)}", kind="type", field=name)
    return [_number(value, f"{name}[{i}]") for i, value in enumerate(values)]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"must be a number, not {json_type_name(value)}", kind="type", field=name)
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"is {value}, which can't be compared", kind="not finite", field=name)
    return value


def _tools(row: dict[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if tools is None:
        tools = row["input"].get("tools") if isinstance(row.get("input"), dict) else None
    if tools is None:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except (ValueError, RecursionError):
            raise RowError("is text that holds no JSON list", kind="tools", field="tools") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("must be a list of objects, or a JSON text of one", kind="tools", field="tools")
    check_json(tools, "tools")
    return tools or None


def _template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    name = "chat_template_kwargs"
    kwargs = row.get(name)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise RowError(f"must be an object, not {json_type_name(kwargs)}", kind="type", field=name)
    check_json(kwargs, name)
    if ours := _RESERVED_TEMPLATE_KWARGS & kwargs.keys():
        raise RowError(f"can't set {', '.join(sorted(ours))}", kind=name, field=name)
    return {key: value for key, value in kwargs.items() if value is not None}


def _no_pair(row: dict[str, Any]) -> RowError:
    """Why there is no pair in a row that holds neither two sides nor completions."""
    if single := _single(row):
        return RowError(
            f"a single {'completion' if single == 'completion' else 'conversation'} is not a pair",
            kind="unpaired",
            field=single,
            hint="It can be trained on with --loss kto, bco or apo_zero_unpaired where it has a `label`, or sft; "
            "a pair has `prompt`, `chosen` and `rejected`.",
        )
    for one, other in (("rejected", "chosen"), ("chosen", "rejected")):
        if _has(row, one):
            return _missing(row, other)
    error = _missing(row, "chosen")
    error.kind, error.field, error.message = "unknown shape", None, "no preference pair in this row's keys"
    return error


def _missing(row: dict[str, Any], key: str) -> RowError:
    """A complaint about a key that is absent or null, naming the keys there are and a likely typo."""
    if key in row:
        return RowError("is null", kind="missing key", field=key)
    names = [str(name) for name in row]
    listed = ", ".join(printable(name, 30) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    typos = _typos(names)
    hint = f"Keys here: {listed or 'none'}. Expected: {_EXPECTED}."
    return RowError("is missing", kind="missing key", field=key, hint=f"{typos} {hint}" if typos else hint)


def _typos(names: list[str]) -> str:
    for name in names[:100]:
        if name not in _KNOWN_COLUMNS and (
            near := difflib.get_close_matches(name.lower()[:40], _KNOWN_COLUMNS, n=1, cutoff=0.75)
        ):
            return f"Did you mean `{near[0]}` by `{printable(name, 40)}`?"
    return ""
