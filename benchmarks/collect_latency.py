"""How soon the first word of an answer is in the page of `mlx-dpo collect`, and how fast its answers grow.

    python benchmarks/collect_latency.py [--model MODEL] [--repeats 9] [--max-tokens 64] [--prompt-words 150] [--json]

First text: from Enter in Chromium to the first text of an answer on the page, and of mlx-lm's `stream_generate` to its
first text. Tokens a second: of the whole answer, from Enter to its last text, and of `stream_generate`. One answer, the
same prompt and temperature, and a process for each. The two take turns, and a ratio is the median over the turns, since
other work on the machine slows both; the best turns are compared, too. A first turn isn't counted. An answer ends at
the model's end of sequence: take a prompt and a model that have something to say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from collect_chromium import DEMO_MODEL, chromium, collect_page
from processes import machine, print_status, versions, with_blas
from rich.console import Console
from rich.table import Table

TEMPERATURE = 0.9
# Notes the times of Enter, of the first text of an answer and of its last change, and keeps the events received.
WATCH = """() => {
  const isEnter = (event) => event.key === "Enter";
  const begin = (event) => { if (isEnter(event)) window.times = {enter: performance.now(), first: 0, last: 0}; };
  document.addEventListener("keydown", begin, true);
  new MutationObserver(() => {
    const node = document.querySelector(".answer .text");
    if (!node?.textContent.trim()) return;
    window.times.last = performance.now();
    window.times.first ||= window.times.last;
  }).observe(document.querySelector("#answers"), {childList: true, subtree: true});
  const fetch = window.fetch;
  window.fetch = async (...request) => {
    const response = await fetch(...request);
    if (request[0] !== "/api/answers") return response;
    const [shown, kept] = response.body.tee();
    window.events = new Response(kept).text();
    return new Response(shown, response);
  };
}"""

Turn = dict[str, float]  # milliseconds to the first text, and tokens a second of the whole answer


class PageClient:
    """The page in Chromium."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page()
        self.page.set_default_timeout(600_000)
        self.page.goto(url)
        self.page.locator("#prompt:focus").wait_for()
        self.page.locator("#status", has_text="Loading").wait_for(state="hidden")
        self.page.evaluate(WATCH)

    def ask(self, prompt: str) -> Turn:
        """One answer."""
        self.page.locator("#prompt").fill(prompt)
        self.page.locator("#prompt").press("Enter")
        self.page.locator("#skip").wait_for()
        times, events = self.page.evaluate("window.times"), self.page.evaluate("window.events")
        self.page.keyboard.press("Space")
        last = [line for line in events.splitlines() if '"num_tokens"' in line][-1]
        (answer,) = json.loads(last.removeprefix("data: "))["answers"]
        seconds = (times["last"] - times["enter"]) / 1000
        return {"first_text_ms": times["first"] - times["enter"], "tokens_per_second": answer["num_tokens"] / seconds}


class GenerationClient:
    """mlx-lm's generation in a process of its own, see `serve_generation`."""

    def __init__(self, model: Path, prompt: str, max_tokens: int) -> None:
        command = [sys.executable, __file__, "--generate", "--model", str(model), "--max-tokens", str(max_tokens)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=with_blas(), text=True, **pipes)
        self._send(prompt)

    def ask(self) -> Turn:
        """One answer."""
        return self._send("")

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()

    def _send(self, text: str) -> Turn:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


def serve_generation(model: Path, max_tokens: int) -> None:
    """Read a prompt, a line, and answer it for each further line."""
    from mlx_lm import load, stream_generate
    from mlx_lm.sample_utils import make_sampler

    from mlx_dpo.data.chat_rendering import ChatRenderer
    from mlx_dpo.data.examples import Prompt
    from mlx_dpo.forward.model_loading import load_tokenizer

    generator, tokenizer = load(str(model))[:2]
    prompt = ChatRenderer(load_tokenizer(str(model))).prompt_ids(Prompt(sys.stdin.readline().strip()))
    print(json.dumps({"prompt_tokens": len(prompt)}), flush=True)
    for _ in sys.stdin:
        sampler = make_sampler(TEMPERATURE)
        first = 0.0
        began = time.perf_counter()
        for part in stream_generate(generator, tokenizer, prompt, max_tokens=max_tokens, sampler=sampler):
            if not first and part.text.strip():
                first = time.perf_counter() - began
        seconds = time.perf_counter() - began
        turn = {"first_text_ms": 1000 * first, "tokens_per_second": part.generation_tokens / seconds}
        print(json.dumps(turn), flush=True)


def compare(model: Path, prompt: str, max_tokens: int, repeats: int) -> dict[str, Any]:
    """Medians of both and of their ratios, and the ratio of their best turns, which other work disturbs least."""
    generation = GenerationClient(model, prompt, max_tokens)
    flags = ("--num-answers", 1, "--temp", TEMPERATURE, "--max-tokens", max_tokens, "--output", "pairs.jsonl")
    turns = []
    folder = tempfile.TemporaryDirectory()
    with folder, chromium() as browser, collect_page(Path(folder.name), "--model", model, *flags) as url:
        client = PageClient(browser, url)
        for number in range(repeats + 1):
            turns.append((client.ask(prompt), generation.ask()))
            page, theirs = (turn["first_text_ms"] for turn in turns[-1])
            print_status(f"turn {number}: first text after {page:.0f} ms, of mlx-lm after {theirs:.0f} ms")
    generation.close()
    figures = {}
    for name, best in (("first_text_ms", min), ("tokens_per_second", max)):
        pairs = [(page[name], theirs[name]) for page, theirs in turns[1:]]
        figures[name] = {
            "page": round(median(page for page, _ in pairs), 1),
            "mlx_lm": round(median(theirs for _, theirs in pairs), 1),
            "ratio": round(median(page / theirs for page, theirs in pairs), 3),
            "ratio_of_best": round(best(page for page, _ in pairs) / best(theirs for _, theirs in pairs), 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=150)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        return serve_generation(options.model, options.max_tokens)
    about = {"machine": machine(), "versions": versions("mlx", "mlx-lm", "playwright")}
    animals = " ".join(["cats", "dogs", "sheep"] * (options.prompt_words // 3))
    prompt = f"Write a long story about these animals: {animals}"
    figures = compare(options.model.resolve(), prompt, options.max_tokens, options.repeats)
    if options.json:
        print(json.dumps({**about, "model": str(options.model), **figures}, indent=2))
        return None
    table = Table("", "page", "mlx-lm", "ratio", "of the best turns")
    for name, values in figures.items():
        table.add_row(name.replace("_", " "), *map(str, values.values()))
    Console(highlight=False).print(table)
    return None


if __name__ == "__main__":
    main()
