"""The prompt of two plain texts without a prompt column: what both begin with, cut between words."""

from __future__ import annotations

import unicodedata

from mlx_dpo.utils.common_prefix import common_prefix_length

# Scripts that are written without spaces, so that any two of their characters may be parted.
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO")


def common_prompt_length(first: str, second: str) -> int:
    """The length of the prompt that two texts share.

    It is the common prefix back to the last white space, if that ends inside a word of one of them. A space before
    the border belongs to the word after it, as in TRL.

    Args:
        first: a text, prompt and answer.
        second: another one.
    """
    length = common_prefix_length(first, second)
    while length and not (_is_border(first, length) and _is_border(second, length)):
        length -= 1
    return length - 1 if length and first[length - 1] == " " else length


def _is_border(text: str, position: int) -> bool:
    """Whether a text may be cut at a position: at its end, beside white space, and between unspaced characters."""
    if position == len(text) or text[position].isspace() or text[position - 1].isspace():
        return True
    return _is_unspaced(text[position - 1]) and _is_unspaced(text[position])


def _is_unspaced(character: str) -> bool:
    if character.isascii():
        return False
    if unicodedata.category(character)[0] == "M":  # a vowel sign or tone mark stays with its letter
        return False
    name = unicodedata.name(character, "")
    return name.startswith(_UNSPACED_SCRIPTS) or unicodedata.east_asian_width(character) == "F"
