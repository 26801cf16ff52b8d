"""Markdown of prompts and answers as HTML that holds no markup but what Markdown itself makes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict


def markdown_to_html(text: str) -> str:
    """Render Markdown.

    HTML in the text is shown as text, images are shown as links to them (the page loads nothing from elsewhere), and
    links to scripts stay text.
    """
    return str(_renderer().render(text))


@cache
def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    renderer.disable(["image", "html_inline", "html_block"])
    renderer.add_render_rule("link_open", _link_to_another_tab)
    return renderer


def _link_to_another_tab(
    self: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """A link that leaves the page as it is, with its answers, and that names it to no other site."""
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    return str(self.renderToken(tokens, index, options, env))  # type: ignore[attr-defined]
