"""Text from files, models and users, made safe to show: no terminal escapes, and no secrets in addresses."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

_C0_AND_C1 = [*range(0x20), *range(0x7F, 0xA0)]  # C1 has one-character forms of the escape sequences
_REMOVED = dict.fromkeys(code for code in _C0_AND_C1 if chr(code) not in "\n\t")
_REPLACED = dict.fromkeys(range(0xD800, 0xE000), "�")  # lone surrogates, which can't be written
_TERMINAL = {**_REMOVED, **_REPLACED}
_JSON = {code: f"\\u{code:04x}" for code in [*range(0x7F, 0xA0), *range(0xD800, 0xE000)]}
HIDDEN = "***"
MIN_SECRET_LENGTH = 4  # of a part; a shorter one would be found in words that are none


def without_terminal_escapes(text: str) -> str:
    """A text whose control characters are removed, so that it can't move the cursor, set colors or a window's title.

    Control characters take no room on the screen, so that a layout computed before stays right. What followed the
    escape character is shown as text.
    """
    return text.translate(_TERMINAL)


def escape_json_controls(json_text: str) -> str:
    """The same JSON with the control characters escaped that JSON allows to stand as they are."""
    return json_text.translate(_JSON)


def url_origin(url: str) -> str:
    """Scheme, host and port of a URL: what can be shown of one that may hold a password or a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def redact_url_secrets(text: str, url: str) -> str:
    """A text without the user name, password and query values of a URL, which an error may repeat."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    parts_of_it = [*credentials.split(":", 1), *(value for _, value in parse_qsl(parts.query))]
    pieces = [url, parts.query, credentials, *(part for part in parts_of_it if len(part) >= MIN_SECRET_LENGTH)]
    secrets = {form for piece in pieces if piece for form in (piece, unquote(piece))}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
