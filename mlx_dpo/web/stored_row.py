"""A line of a file of verdicts, as the data view lists it."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.data_warnings import Occurrences, RowWarning, describe
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.row_reading import parse_line
from mlx_dpo.errors import RowError, Where
from mlx_dpo.labeling.verdict_merging import LABELLER_COLUMN
from mlx_dpo.web.verdicts import EDITED_COLUMN

PREFERENCE, TIE, LABEL, BROKEN = ROW_KINDS = ("preference", "tie", "label", "broken")
PREVIEW_CHARACTERS = 240  # of a text in the list, where each has one line
_MAX_COMPARED = 8  # completions of a tie; more would make very many comparisons


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a row says of two completions of a prompt, or of one.

    Attributes:
        subject: digest of the prompt and the completions, in whatever order they were shown.
        verdict: of two, digest of the better one; "tie"; of one, "good" or "bad".
    """

    subject: bytes
    verdict: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row, or what is wrong with it.

    Attributes:
        line: its bytes in the file, with the line's end.
        digest: by which a page names it.
        kind: one of `ROW_KINDS`.
        problem: why it can't be trained on; empty for all kinds but "broken".
        labeller: whose verdict it is; empty if unknown.
        is_edited: whether a person wrote one of its texts.
        warnings: (key, sentence) of each warning of `mlx-dpo data check`.
        prompt: the beginning of the prompt.
        completions: (role, beginning) of each completion; the role is chosen, rejected, tie, good, bad or unlabelled.
        searched: all its texts, in lower case.
        content_key: digest of the prompt and all completions in any order; equal ones are duplicates.
        judgments: on its completions.
    """

    line: bytes
    digest: str
    kind: str
    problem: str = ""
    labeller: str = ""
    is_edited: bool = False
    warnings: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    completions: tuple[tuple[str, str], ...] = ()
    searched: str = ""
    content_key: bytes = b""
    judgments: tuple[Judgment, ...] = ()


def line_digest(line: bytes) -> str:
    """The digest of a line, without its end."""
    return hashlib.blake2b(line.rstrip(b"\r\n"), digest_size=12).hexdigest()


def read_stored_row(line: bytes) -> StoredRow:
    """The row of a line, valid or not."""
    digest, where = line_digest(line), Where("")
    try:
        row, examples = parse_line(line.removeprefix(codecs.BOM_UTF8), where, parse_examples)
    except RowError as error:
        text = line.decode("utf-8", "replace").strip()
        error.where = None
        return StoredRow(
            line, digest, BROKEN, str(error), prompt=text[:PREVIEW_CHARACTERS], searched=text.lower(), content_key=line
        )
    labeller = row.get(LABELLER_COLUMN)
    kind = TIE if not examples else PREFERENCE if isinstance(examples[0], Pair) else LABEL
    prompt, completions = _contents(row, examples)
    texts = list(map(plain_text, completions.values()))
    return StoredRow(
        line,
        digest,
        kind,
        labeller=labeller if isinstance(labeller, str) else "",
        is_edited=row.get(EDITED_COLUMN) is True,
        warnings=tuple(_warning(warning) for example in examples for warning in example.warnings),
        prompt=plain_text(prompt)[:PREVIEW_CHARACTERS],
        completions=tuple(_with_roles(examples, completions)),
        searched="\n".join([plain_text(prompt), *texts, str(labeller or "")]).lower(),
        content_key=_digest([prompt, sorted(completions)]),
        judgments=tuple(_judgments(prompt, completions, examples)),
    )


def _contents(row: dict[str, Any], examples: Sequence[Example]) -> tuple[Any, dict[str, Any]]:
    """The prompt, and the completions by their digests, chosen ones first."""
    prompt: Any
    chosen: list[Any]
    others: list[Any]
    if examples:
        chosen = [example.completions[0] for example in examples]
        others = [completion for example in examples for completion in example.completions[1:]]
        prompt = examples[0].prompt
    else:
        prompt, listed = row.get("prompt"), row.get("completions")
        chosen, others = listed if isinstance(listed, list) else [], []
    return _without_single_turn(prompt), {_completion_key(c): c for c in (*chosen, *others)}


def _with_roles(examples: Sequence[Example], completions: dict[str, Any]) -> Iterable[tuple[str, str]]:
    best = {_completion_key(example.completions[0]) for example in examples}
    for key, completion in completions.items():
        role = "tie"
        if examples and isinstance(examples[0], Completion):
            role = {True: "good", False: "bad", None: "unlabelled"}[examples[0].desirable]
        elif examples:
            role = "chosen" if key in best else "rejected"
        yield role, plain_text(completion)[:PREVIEW_CHARACTERS]
    for example in examples:
        if isinstance(example, Pair) and _completion_key(example.chosen) == _completion_key(example.rejected):
            yield "rejected", plain_text(example.rejected)[:PREVIEW_CHARACTERS]


def _judgments(prompt: Any, completions: dict[str, Any], examples: Sequence[Example]) -> Iterable[Judgment]:
    if not examples and len(completions) <= _MAX_COMPARED:
        for two in combinations(sorted(completions), 2):
            yield Judgment(_digest([prompt, two]), "tie")
    for example in examples:
        keys = [_completion_key(completion) for completion in example.completions]
        subject = _digest([prompt, sorted(keys)])
        if isinstance(example, Completion):
            if example.desirable is not None:
                yield Judgment(subject, "good" if example.desirable else "bad")
        elif len(set(keys)) > 1:
            yield Judgment(subject, keys[0])


def _warning(warning: RowWarning) -> tuple[str, str]:
    sentence = describe(warning.kind, Occurrences(names=Counter(warning.names)))
    return warning.kind.key, f"{sentence[:1].upper()}{sentence[1:]}. {warning.kind.hint}"


def plain_text(value: TextOrMessages | Any) -> str:
    """The text of a prompt or a completion; of messages, their contents after their roles where there are several."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    turns = [turn for turn in value if isinstance(turn, dict)]
    contents = [plain_text(turn.get("content")) for turn in turns]
    if len(turns) == 1:
        return contents[0]
    return "\n".join(f"{turn.get('role')}: {content}" for turn, content in zip(turns, contents, strict=True))


def _without_single_turn(value: Any) -> Any:
    """A text that stands in one turn, as the text: rows with either hold the same."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and len(value[0]) == 2:
        return value[0].get("content", value)
    return value


def _completion_key(completion: Any) -> str:
    return _digest(_without_single_turn(completion)).hex()


def _digest(value: Any) -> bytes:
    # ASCII, so that half a surrogate pair is no error
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).digest()
