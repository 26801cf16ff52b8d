"""axe-core, which finds faults of a page that keep people with a screen reader or other aids from using it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.web.collect_server_process import CollectView

AXE = Path(__file__).parent / "vendor" / "axe.min.js"


def violations(view: CollectView) -> list[tuple[str, list[Any]]]:
    """The faults of what is on the screen: the rule, and the elements."""
    if not view.page.evaluate("'axe' in window"):
        view.page.evaluate(AXE.read_text(encoding="utf-8"))
    found = view.page.evaluate("axe.run()")["violations"]
    return [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in found]
