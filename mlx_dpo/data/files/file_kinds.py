"""What a file is by its first bytes, if it is not lines of JSON; errors name it."""

from __future__ import annotations

import codecs
import json
import re

from mlx_dpo.errors import UserError, Where

_LFS = b"version https://git-lfs.github.com/spec/"
_MAGIC = {
    b"PK\x03\x04": ("is a zip archive", "Unpack it first."),
    b"\x28\xb5\x2f\xfd": ("is compressed by zstd", "Decompress it first: zstd -d FILE"),
    b"BZh": ("is compressed by bzip2", "Decompress it first: bunzip2 FILE"),
    b"\xfd7zXZ\x00": ("is compressed by xz", "Decompress it first: unxz FILE"),
    b"ARROW1": ("is an Arrow file", "Write it as parquet or JSON lines: to_parquet or to_json of datasets."),
    codecs.BOM_UTF16_LE: ("is text in UTF-16", "Save it as UTF-8."),
    codecs.BOM_UTF16_BE: ("is text in UTF-16", "Save it as UTF-8."),
}
_HTML = re.compile(rb"\s*<(?:!doctype\s+html|html|\?xml|head|body)\b", re.IGNORECASE)
_HEADER_WORDS = re.compile(r"\b(prompt|question|instruction|chosen|rejected|completion|response|label|query)\b", re.I)
_WRAPPER = re.compile(
    r"""\s*\{(?:\s*"[^"\\]*(?:\\.[^"\\]*)*"\s*:\s*(?:"[^"\\]*(?:\\.[^"\\]*)*"|-?[\d.eE+-]+|true|false|null)\s*,)*
    \s*"(?:data|rows|train|examples|samples|items|records|pairs|instances|dataset)"\s*:\s*\[(?=\s*\{)
    (?!\s*\{\s*"(?:role|from|content|value)"\s*:)""",
    re.VERBOSE,
)


def is_parquet(start: bytes) -> bool:
    """Whether a file's first bytes are those of parquet."""
    return start[:4] == b"PAR1"


def check_is_text_of_rows(start: bytes, name: str, *, is_table: bool) -> None:
    """Raise `UserError` if a file's first bytes show that it holds no rows.

    Args:
        start: the first bytes.
        name: the file's name.
        is_table: whether a table is read, not JSON.
    """
    where, text = Where(name), start.removeprefix(codecs.BOM_UTF8)
    for magic, (kind, hint) in _MAGIC.items():
        if start.startswith(magic):
            raise UserError(f"{kind}, not rows", where=where, hint=hint)
    if text.startswith(_LFS):
        hint = "Fetch the file itself: git lfs pull, or download it from its page."
        raise UserError("is a pointer of Git LFS, not the file itself", where=where, hint=hint)
    if _HTML.match(text):
        hint = "Download the file itself: on the Hub and on GitHub, the raw file rather than its page."
        raise UserError("is an HTML page, not rows", where=where, hint=hint)
    if is_table and text.lstrip()[:1] == b"{":
        hint = "Rename it to .jsonl."
        raise UserError("holds JSON objects, not a table", where=where, hint=hint)
    if not is_table and (delimiter := table_delimiter(text)):
        suffix = ".tsv" if delimiter == "\t" else ".csv"
        raise UserError(f"is a table, not lines of JSON: rename it to {suffix}", where=where)


def wrapper_end(start: bytes) -> int | None:
    """Where the rows begin in a file that is one object around them, {"data": [...]}; None where it is none.

    Args:
        start: the file's first bytes.

    Returns:
        The number of characters before the rows' bracket, without a byte order mark.
    """
    text = start.removeprefix(codecs.BOM_UTF8)
    match = _WRAPPER.match(text.decode("utf-8", "ignore"))
    return len(match[0]) - 1 if match else None


def is_indented(start: bytes) -> bool:
    """Whether a file holds objects over several lines, as json.dumps(indent=2) and jq write them."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    return re.match(rb"\{[ \t]*\r?\n", text) is not None


def table_delimiter(text: bytes) -> str | None:
    """The delimiter of a header of a table with known columns; None where the first line is something else.

    Args:
        text: the first bytes, without a byte order mark.
    """
    line = text.lstrip().split(b"\n", 1)[0].decode("utf-8", "ignore").strip()
    if not line or line[0] in "[{":
        return None
    try:
        json.loads(line)
        return None  # a row that is not an object
    except ValueError:
        pass
    counts = {delimiter: line.count(delimiter) for delimiter in "\t,;"}
    delimiter = max(counts, key=lambda d: counts[d])
    return delimiter if counts[delimiter] and _HEADER_WORDS.search(line) and len(line) < 2000 else None
