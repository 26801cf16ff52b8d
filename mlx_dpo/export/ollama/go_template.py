"""A turn format as a template of Go's text/template, as Ollama fills it in.

Ollama gives the template `.Messages`, without two in a row of the same role, and `.System`, the texts of all system
messages; it executes it once for the whole conversation.
"""

from __future__ import annotations

import re

from mlx_dpo.export.ollama.turn_format import SystemPlace, TurnFormat

_IS_LAST = "eq (len (slice $.Messages $i)) 1"
# What ends an action or the Modelfile's string too early, and what Ollama's parser of Modelfiles leaves out.
_QUOTED = re.compile(r'\{\{|"{3}|"$|^"|\r')


def go_template(turn_format: TurnFormat) -> str:
    """Write the template of a turn format.

    Args:
        turn_format: the format.

    Returns:
        A text that can stand between three double quotes in a Modelfile.
    """
    opening = _literal(turn_format.opening)
    prefix, loop = _literal(turn_format.user[0]), "range .Messages"
    place, system = turn_format.system_place, _system(turn_format)
    if place is SystemPlace.OWN_TURN:
        opening = _if_system(".System", system, opening)
    elif place is SystemPlace.FIRST_USER:
        first = _if_system("$.System", system, opening)
        prefix = "{{ if $first }}" + first + "{{ $first = false }}{{ else }}" + prefix + "{{ end }}"
        opening = "{{ $first := true }}"
    elif system:
        loop = "range $i, $_ := .Messages"
        prefix += "{{ if and $.System (" + _IS_LAST + ") }}" + system + "{{ end }}"
    user = prefix + "{{ .Content }}" + _literal(turn_format.user[1])
    assistant = "{{ .Content }}".join(map(_literal, turn_format.assistant))
    turns = '{{ if eq .Role "user" }}' + user + '{{ else if eq .Role "assistant" }}' + assistant + "{{ end }}"
    return opening + "{{ " + loop + " }}" + turns + "{{ end }}" + _literal(turn_format.generation_prompt)


def _system(turn_format: TurnFormat) -> str:
    """The system message with the texts around it; empty if the format has none."""
    if turn_format.system is None:
        return ""
    name = ".System" if turn_format.system_place is SystemPlace.OWN_TURN else "$.System"
    return f"{{{{ {name} }}}}".join(map(_literal, turn_format.system))


def _if_system(name: str, system: str, otherwise: str) -> str:
    if not system:
        return otherwise
    alternative = "{{ else }}" + otherwise if otherwise else ""
    return "{{ if " + name + " }}" + system + alternative + "{{ end }}"


def _literal(text: str) -> str:
    """A text as it is, or as a Go string where a template or a Modelfile would take it otherwise."""
    printable = all(character.isprintable() or character in "\n\t" for character in text)
    if printable and not _QUOTED.search(text) and not text.endswith("{"):
        return text
    escaped = "".join(_escape(character) for character in text)
    return '{{ "' + escaped + '" }}'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
