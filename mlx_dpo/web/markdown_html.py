"""Markdown of prompts and answers as HTML that holds no markup but what Markdown itself makes."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt


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
    return renderer
