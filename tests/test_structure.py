"""The code's shape and vocabulary: names that occur once, files that can be read at once, words of the field."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "mlx_dpo").rglob("*.py"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_FILE = 300  # lines
DATA_FILES = {"topics.py"}  # tables of the demo

# Words of an earlier private vocabulary, each with the term that replaces it.
IDENTIFIERS = {
    "told": "summary, message, payload",
    "said": "message",
    "says": "message",
    "tell": "report, notify",
    "asked": "requested",
    "slopes": "gradients",
    "slope": "gradient",
    "emphasis": "token_weights",
    "sides": "completions_per_example",
    "yardstick": "MarginEvaluator",
    "rung": "BitOption",
    "rungs": "BitOption",
    "climb": "greedy_upgrade",
    "mend": "fix",
    "mended": "fixed",
    "knob": "setting",
    "knobs": "settings",
    "caution": "OomFallback",
    "carefree": "NO_FALLBACK",
    "tournament": "pairwise_evaluation",
    "examination": "EvaluationRun",
    "aside": "atomic_write",
    "mixing": "interpolate_adapters",
    "grid": "qa_lora",
    "mail": "all_gather",
    "leads": "is_main",
    "faults": "diagnostics",
    "told_all": "all_gather",
}
WHOLE_IDENTIFIERS = {
    "of": "from_...",
    "one": "the noun",
    "each": "the noun",
    "found": "the noun",
    "seen": "the noun",
    "given": "inputs",
    "made_of": "provenance",
    "set_up": "components",
    "policy_as": "swap_adapter",
    "blank": "upstream_grad",
    "moment": "EvalSnapshot",
    "trained": "completion_mask",
    "recomputed": "num_checkpointed",
}
PHRASES = {
    r"\btold\b": "reported",
    r"\bsaid\b": "reported",
    r"\bslopes?\b": "gradient",
    r"\byardsticks?\b": "margin evaluator",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bknobs?\b": "setting",
    r"\bcarefree\b": "no fallback",
    r"\bgo(es|ing)? on (with|from|where)\b": "resume",
    r"\bto know:": "Warnings",
    r"\bsay only what\b": "Print warnings only",
    r"\bthe same of\b": "(say what it is)",
    r"\bwithout a word\b": "lost connection",
    r"\bwhat it came to\b": "Results",
    r"\bmade of is not what it was\b": "changed since the checkpoint",
    r"\brungs?\b": "bit option",
}
KEPT_ON_DISK = {"made_of"}  # a key of progress.json
KEPT_KEYS = ('"knobs"',)  # JSON keys that scripts read


def module_names() -> list[str]:
    return [path.stem for path in SOURCES if not path.stem.startswith("__")]


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words(identifier: str) -> list[str]:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_").split("_")


def test_module_names_are_unique() -> None:
    assert [name for name, count in Counter(module_names()).items() if count > 1] == []


def test_class_names_are_unique() -> None:
    classes = Counter(
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_files_are_short() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE and name not in DATA_FILES} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_and_texts_use_the_terms_of_the_field(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [
        f"line {line}: {name} -> {WHOLE_IDENTIFIERS.get(name.strip(chr(95))) or IDENTIFIERS.get(word)}"
        for name, line in identifiers(tree)
        for word in words(name)
        if (word in IDENTIFIERS or name.strip("_") in WHOLE_IDENTIFIERS) and name not in KEPT_ON_DISK
    ]
    source = path.read_text(encoding="utf-8")
    for key in KEPT_KEYS:
        source = source.replace(key, "")
    if "demo" not in path.parts:  # the demo's pairs are prose of their own
        wrong += prose_findings(source)
    assert wrong == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_terms_of_the_field(path: Path) -> None:
    assert prose_findings(path.read_text(encoding="utf-8")) == []


def prose_findings(text: str) -> list[str]:
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]} -> {term}"
        for pattern, term in PHRASES.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
