"""The elements of a JSON array, or JSON values one after the other, as lines; read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO

from mlx_dpo.data.files.json_lines import bad_json_error, not_utf8_error
from mlx_dpo.errors import Where

BUFFER_BYTES = 1 << 20
_WHITESPACE = " \t\r\n"


def starts_array(data: bytes) -> bool:
    """Whether the first bytes of a file begin a JSON array."""
    return data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def array_elements(stream: IO[bytes], name: str, skip: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, 0, JSON on one line) for every element of an array.

    Args:
        stream: its bytes, from the start.
        name: what errors call it.
        skip: characters before the array, of an object whose value it is; what follows it in the object is not read.

    Raises:
        RowError: the text is not UTF-8, or not an array.
    """
    text = _TextReader(stream, name)
    text.peek()
    if skip:
        text.advance(skip)
    text.advance(text.position + 1)
    if text.peek() == "]":
        return
    delimiter = ","
    while delimiter == ",":
        text.peek()
        yield _element_line(text)
        delimiter = text.peek()
        if delimiter not in (",", "]"):
            reason = "expecting ',' or ']' between rows" if delimiter else "the file ends inside the array"
            line, column = text.location(text.position)
            raise bad_json_error(reason, Where(name, line), column)
        text.advance(text.position + 1)
    if skip:
        _check_wrapper_end(text)
    elif text.peek():
        raise bad_json_error("there is more after the array's end", Where(name, text.line))


def json_values(stream: IO[bytes], name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the same as `array_elements` for every JSON value of a text, of one line or several. Raises `RowError`."""
    text = _TextReader(stream, name)
    while text.peek():
        yield _element_line(text)


def _element_line(text: _TextReader) -> tuple[int, int, bytes]:
    line, element = text.line, _read_element(text)
    # between tokens a line break is as good as a space, and inside a string there is none
    return line, 0, element.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogatepass")


def _check_wrapper_end(text: _TextReader) -> None:
    """Read the other keys of an object around rows. Raises `RowError` if it does not end, or more follows."""
    while text.peek() == ",":
        text.advance(text.position + 1)
        text.peek()
        _read_element(text)
        if text.peek() != ":":
            break
        text.advance(text.position + 1)
        text.peek()
        _read_element(text)
    if text.peek() != "}":
        raise bad_json_error("the object around the rows does not end", Where(text.name, text.line))
    text.advance(text.position + 1)
    if text.peek():
        raise bad_json_error("there is more after the object around the rows", Where(text.name, text.line))


class _TextReader:
    """The text of a stream from the current position on, decoded as needed, and the line of the position."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name = stream, name
        self.line, self.text, self.position, self.ended = 1, "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def read_more(self) -> None:
        """Drop the text before the position, and read at least as much as is left."""
        self.text, self.position = self.text[self.position :], 0
        data = self.stream.read(max(BUFFER_BYTES, len(self.text)))
        self.ended = not data
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise not_utf8_error(error, Where(self.name, line)) from None

    def advance(self, position: int) -> None:
        """Move forward to a position in `text`."""
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def peek(self) -> str:
        """Skip white space, and return the next character, or nothing at the end."""
        while True:
            position = self.position
            while position < len(self.text) and self.text[position] in _WHITESPACE:
                position += 1
            self.advance(position)
            if position < len(self.text):
                return self.text[position]
            if self.ended:
                return ""
            self.read_more()

    def location(self, position: int) -> tuple[int, int]:
        """(line, column) of a position in `text`; the column counts from the last line break that is still there."""
        line = self.line + self.text.count("\n", self.position, position)
        return line, position - self.text.rfind("\n", 0, position)


def _read_element(text: _TextReader) -> str:
    """The text of the value at the position, which advances to its end."""
    decode = json.JSONDecoder().raw_decode
    while True:
        start = text.position
        try:
            _, end = decode(text.text, start)
            text.advance(end)
            return text.text[start:end]
        except json.JSONDecodeError as error:
            cut_off = error.msg.startswith("Unterminated string") or error.pos > len(text.text) - 16
            if text.ended or not cut_off:
                line, column = text.location(error.pos)
                raise bad_json_error(error, Where(text.name, line), column) from None
        except (RecursionError, ValueError) as error:
            raise bad_json_error(error, Where(text.name, text.line)) from None
        text.read_more()
