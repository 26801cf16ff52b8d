"""README, CONTRIBUTING and docs/ name files and flags that exist, and show what the program prints."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from mlx_dpo import TrainConfig
from mlx_dpo.doctor.environment_checks import environment_checks
from mlx_dpo.reporting.diagnostics_listener import diagnose
from mlx_dpo.reporting.metric_changes import compute_changes
from mlx_dpo.reporting.result_summary import held_out_table
from mlx_dpo.reporting.verdict import verdict
from tests.doctor.stand_ins import mac_machine, machine
from tests.reporting.test_verdict import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    names = re.findall(
        r"(?<![\w/(])(?:tests|benchmarks|examples|mlx_dpo)/[\w/]+\.\w+", page.read_text(encoding="utf-8")
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_guarantees_name_their_tests() -> None:
    rows = re.findall(
        r"^\| (?!promise|---).*$", (ROOT / "docs/guarantees.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) > 40 and all(re.search(r"`(tests|benchmarks)/\S+\.py`", row) for row in rows)


def test_renamed_settings_are_flags() -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = text.partition("## Names from TRL and mlx-lm")[2].partition("\n## ")[0]
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([\w-]+)", table)} - {"resume"}  # an option of train
    assert len(flags) > 20 and flags <= {field.name for field in dataclasses.fields(TrainConfig)}


def words(text: str) -> list[str]:
    """Its words, without numbers and drawn lines."""
    return re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)*", text)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_verdict_shown_is_the_one_printed(page: str) -> None:
    statistics = run(0.3, -0.5)
    printed = verdict(statistics, compute_changes(statistics), diagnose(statistics))
    shown = re.findall(r"^After \d+ steps, .*$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert [words(line) for line in shown] == [words(printed)]


def test_the_table_shown_is_the_one_printed() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    statistics = run(0.3, -0.5)
    records = [dataclasses.replace(record, kl=record.lengths * 0.01) for record in statistics.eval_records]
    console.print(held_out_table(compute_changes(dataclasses.replace(statistics, eval_records=records))))
    shown = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8").partition("Held-out metrics")
    block = "".join(shown[1:]).partition("length of sampled")[0]  # the made-up run has no samples
    assert words(block) == words(console.export_text())


def test_checks_of_the_machine_have_a_row() -> None:
    text = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w -]+?)(?: \((?:Mac|Linux)\))? \|", text, re.MULTILINE)
    checks = {check.name for facts in (machine(), mac_machine()) for check in environment_checks(facts)}
    assert checks == set(rows) - {"check", "---"}
