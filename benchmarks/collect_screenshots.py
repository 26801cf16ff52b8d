"""Take pictures of the page of `mlx-dpo collect`: the views, at desktop and phone width, light and dark.

    python benchmarks/collect_screenshots.py [OUT]

Starts the command with the bundled model and some rows, asks two questions in Chromium, chooses an answer of the first,
and leaves collect.png, collect-dark.png, collect-phone.png, collect-phone-dark.png, and the same of collect-data, in
OUT (docs/ by default; the documentation shows some). Sampling is random: the answers differ each time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from collect_chromium import DEMO_MODEL, ROOT, chromium, collect_page

HEIGHT = 844
WIDTHS = {"": 1200, "-phone": 390}
THEMES = {"": "light", "-dark": "dark"}
EGG = "Put it into boiling water for seven minutes, then into cold water so that it peels easily."
BOX = "Imagine a box that holds a smaller box, which holds a smaller one again: you open one after the other."
HAIKUS = ["Soft drops on the roof\nthe gutter hums a slow tune\nI forget my tea", "Rain falls down on me"]
TURNS = [
    {"role": "user", "content": "My code is slow."},
    {"role": "assistant", "content": "Which part?"},
    {"role": "user", "content": "The loop over rows."},
]
ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I boil an egg?", "chosen": EGG, "rejected": "Figure it out.", "labeller": "ana"},
    {"prompt": "Explain recursion.", "chosen": BOX, "rejected": "See recursion.", "labeller": "ben", "edited": True},
    {"prompt": "How do I boil an egg?", "chosen": "Figure it out.", "rejected": EGG, "labeller": "ana"},
    {"prompt": "Write a haiku about rain.", "completions": HAIKUS, "scores": [0, 0], "labeller": "ben"},
    {"prompt": "What is the capital of Peru?", "chosen": "Lima.", "rejected": "Lima.", "labeller": "ana"},
    {
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": "Work on whole columns: `frame.a + frame.b`."}],
        "rejected": [{"role": "assistant", "content": "Buy a faster computer."}],
        "labeller": "ben",
    },
]


def take_pictures(browser: Any, url: str, output: Path, folder: Path, ending: str, **options: Any) -> None:
    """Of the views, in one window."""
    page = browser.new_page(**options)
    page.goto(url)
    for question in ("What food do sheep like?", "Where do they sleep?"):
        page.locator("#prompt:focus").wait_for()
        page.keyboard.type(question)
        page.keyboard.press("Enter")
        page.locator("#skip").wait_for()
        if question.startswith("What"):
            page.keyboard.press("1")
    # A picture of the full page would be taken without the touch screen.
    width, height = options["viewport"]["width"], page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": height})
    page.screenshot(path=folder / f"collect{ending}.png")
    page.set_viewport_size(options["viewport"])
    page.keyboard.press("Space")
    output.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    page.get_by_role("link", name="Data", exact=True).click()
    page.locator("#data-status", has_text=f"{len(ROWS)} rows").wait_for()
    page.screenshot(path=folder / f"collect-data{ending}.png")
    page.close()
    output.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "docs")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        shutil.copytree(DEMO_MODEL, folder / "model")
        with collect_page(folder, "--model", "model", "--output", "pairs.jsonl") as url:
            for width_ending, width in WIDTHS.items():
                for theme_ending, theme in THEMES.items():
                    viewport = {"width": width, "height": HEIGHT}
                    options = {"viewport": viewport, "color_scheme": theme, "has_touch": width < 500}
                    take_pictures(browser, url, folder / "pairs.jsonl", out, width_ending + theme_ending, **options)


if __name__ == "__main__":
    main()
