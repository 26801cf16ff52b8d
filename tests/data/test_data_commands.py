"""mlx-dpo data check, show and convert, as typed."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mlx_dpo.cli.data import app
from mlx_dpo.errors import UserError
from tests.conftest import CHECKPOINT, PAIRS, TRL, write_rows

OK = {"prompt": "q", "chosen": "good", "rejected": "bad"}
CHAT = {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]}
CHAT["rejected"] = [CHAT["chosen"][0], {"role": "assistant", "content": "bad"}]
SCORED = {"prompt": "q2", "completions": ["a", "b", "c"], "scores": [3, 2, 1]}
TIED = {"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]}
EQUAL = {"prompt": "q3", "chosen": "same", "rejected": "same"}
NUMBER = {"prompt": "q", "chosen": 3, "rejected": "[red]x"}
TYPO = {"prompt": "q", "choosen": "[red]", "rejected": "x"}


def data(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def told(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = data(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def complaint(*arguments: object) -> str:
    result = data(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_check_counts_everything(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [OK, OK, CHAT, SCORED, TIED, EQUAL, NUMBER, TYPO, OK])
    survey = told("check", file, code=2)
    assert (survey["rows"], survey["pairs"], survey["problems"]) == (9, 8, 2)
    assert survey["shapes"] == {
        "prompt, chosen, rejected, text": 4,
        "prompt, completions, scores": 2,
        "implicit prompt, messages": 1,
    }
    assert survey["problem_kinds"] == {"type": 1, "missing key": 1}
    first = survey["first_problems"][0]
    assert (first["file"], first["line"], first["field"], first["kind"]) == (str(file), 7, "chosen", "type")
    assert [p["line"] for p in survey["duplicates"]["first"]] == [2, 9]
    assert (survey["equal_sides"]["count"], survey["equal_sides"]["first"][0]["line"]) == (1, 6)
    assert survey["rows_without_pairs"]["count"] == 1
    assert "tokens" not in survey


def test_check_for_people(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [OK, NUMBER, TYPO])
    result = data("check", file)
    assert result.exit_code == 2
    assert f"{file}:2: `chosen`: must be text or messages, not a number\n" in result.stdout
    assert "Did you mean `chosen` by `choosen`?" in result.stdout
    assert "2 problems" in result.stdout
    good = data("check", write_rows(tmp_path / "b.jsonl", [OK]))
    assert good.exit_code == 0
    assert "No problems: 1 pairs" in good.stdout


def test_check_names_the_first_twenty_problems_and_counts_all(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [OK, *[NUMBER] * 25, *[TYPO] * 5])
    result = data("check", file)
    assert len(re.findall(r"a\.jsonl:\d+: ", result.stdout)) == 20
    survey = told("check", file, code=2)
    assert (survey["problems"], len(survey["first_problems"])) == (30, 20)
    assert survey["problem_kinds"] == {"type": 25, "missing key": 5}


def test_check_in_tokens() -> None:
    reference = json.loads((TRL / "reference.json").read_text())["pairs"]
    survey = told("check", PAIRS, "--model", CHECKPOINT, "--max-length", 100)
    assert survey["pairs"] == 8
    for name in ("prompt", "chosen", "rejected"):
        lengths = sorted(len(pair[f"{name}_ids"]) for pair in reference)
        quantiles = survey["tokens"][name]
        assert (quantiles["min"], quantiles["max"]) == (lengths[0], lengths[-1])
        assert quantiles["50%"] in lengths[3:5]
    longest = [len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in reference]
    assert survey["cut"]["count"] == sum(n > 100 for n in longest) > 0
    assert survey["prefix_not_held"]["count"] == 0
    table = data("check", PAIRS, "--model", CHECKPOINT).stdout
    assert "50%" in table and "truncated at --max-length" in table


def test_check_tells_where_the_template_refuses_and_where_prompts_are_no_prefix(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('No!') }}{% endif %}"
        "{{ m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\\n<think>' }}{% endif %}"
    )
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    file = write_rows(tmp_path / "a.jsonl", [OK, {**OK, "prompt": "no"}, {**OK, "prompt": "other"}])
    survey = told("check", file, "--model", checkpoint, code=2)
    assert survey["problem_kinds"] == {"template": 1}
    assert survey["first_problems"][0]["line"] == 2
    assert [p["line"] for p in survey["prefix_not_held"]["first"]] == [1, 3]


def test_check_a_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [OK, EQUAL])
    write_rows(tmp_path / "valid.jsonl", [OK])
    survey = told("check", tmp_path)
    assert [Path(f).name for f in survey["files"]] == ["train.jsonl", "valid.jsonl"]
    duplicate = survey["duplicates"]["first"][0]
    assert (Path(duplicate["file"]).name, duplicate["line"]) == ("valid.jsonl", 1)
    (tmp_path / "empty").mkdir()
    assert "no train.jsonl" in complaint("check", tmp_path / "empty")


def test_check_what_can_not_be_read(tmp_path: Path) -> None:
    assert "no such file" in complaint("check", tmp_path / "no.jsonl")
    assert "holds no rows" in complaint("check", write_rows(tmp_path / "a.jsonl", []))
    nothing = data("check", write_rows(tmp_path / "b.jsonl", [TIED]))
    assert nothing.exit_code == 2 and "No pairs to train on" in nothing.stdout
    assert told("check", write_rows(tmp_path / "c.jsonl", [7]), code=2)["first_problems"][0]["field"] is None


def test_show() -> None:
    shown = data("show", 3, PAIRS, "--model", CHECKPOINT).stdout
    assert f"Pair 3, {PAIRS}:3" in shown
    assert "<|im_start|>system⏎\nYou are a terse assistant.<|im_end|>⏎" in shown
    assert "«Red, green, blue.»⟦<|im_end|>⟧«⏎\n»" in shown
    assert "\x1b[" not in shown
    reference = json.loads((TRL / "reference.json").read_text())["pairs"][2]
    pair = told("show", 3, PAIRS, "--model", CHECKPOINT)
    assert (pair["pair"], pair["line"]) == (3, 3)
    assert pair["prompt"]["ids"] == reference["prompt_ids"]
    assert pair["chosen"]["ids"] == reference["chosen_ids"]
    assert pair["rejected"]["ids"] == reference["rejected_ids"]
    assert pair["chosen"]["text"] == "Red, green, blue.<|im_end|>\n"
    assert pair["prompt"]["tokens"] == len(reference["prompt_ids"])


def test_show_in_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    console = Console(highlight=False, force_terminal=True, color_system="truecolor", no_color=False)
    monkeypatch.setattr("mlx_dpo.cli.data.stdout_console", console)
    monkeypatch.setattr("mlx_dpo.cli.tables.pair_view.stdout_console", console)
    shown = data("show", 1, PAIRS, "--model", CHECKPOINT).stdout
    assert "\x1b[32mThe capital of France is Paris.\x1b[0m\x1b[1;7;35m<|im_end|>" in shown
    assert "«" not in shown
    assert "«" in data("show", 1, PAIRS, "--model", CHECKPOINT, "--no-color").stdout


def test_show_hides_no_tricks_and_counts_pairs(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [SCORED, NUMBER, {**OK, "chosen": "\x1b[31m[red]"}])
    shown = data("show", 4, file, "--model", CHECKPOINT)
    assert r"«\x1b[31m[red]»" in shown.stdout
    assert "not counted: 1" in shown.stderr
    assert told("show", 3, file, "--model", CHECKPOINT)["chosen"]["text"].startswith("b")
    assert "there is no pair 5: it holds 4" in complaint("show", 5, file, "--model", CHECKPOINT)
    assert "`N`: 0 is out of range" in complaint("show", 0, file, "--model", CHECKPOINT)


def test_convert(tmp_path: Path) -> None:
    tools = {**OK, "tools": '[{"name": "f"}]', "chat_template_kwargs": {"x": 1}, "extra": "é"}
    file = write_rows(tmp_path / "a.jsonl", [CHAT, SCORED, tools])
    expected = [
        {"prompt": CHAT["chosen"][:1], "chosen": CHAT["chosen"][1:], "rejected": CHAT["rejected"][1:]},
        *[
            {"prompt": "q2", "chosen": c, "rejected": r, "score_chosen": better, "score_rejected": worse}
            for c, r, better, worse in (("a", "b", 3, 2), ("a", "c", 3, 1), ("b", "c", 2, 1))
        ],
        {**OK, "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}},
    ]
    for name in ("b.jsonl", "b.jsonl.gz"):
        out = tmp_path / name
        assert told("convert", file, out) == {"pairs": 5, "skipped_rows": 0, "out": str(out)}
        text = gzip.decompress(out.read_bytes()) if name.endswith("gz") else out.read_bytes()
        assert [json.loads(line) for line in text.splitlines()] == expected
        again = tmp_path / "again.jsonl"
        told("convert", out, again)
        assert again.read_bytes() == text
    to_stdout = data("convert", file, "-")
    assert [json.loads(line) for line in to_stdout.stdout.splitlines()] == expected
    assert "5 pairs" in to_stdout.stderr


def test_convert_leaves_earlier_work_untouched(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [OK, NUMBER])
    out = tmp_path / "b.jsonl"
    out.write_text("earlier")
    assert "a.jsonl:2" in complaint("convert", file, out)
    assert out.read_text() == "earlier"
    before = file.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    for read, written in ((file, file), (file, link), (link, file)):
        assert "would be overwritten" in complaint("convert", read, written)
    assert file.read_bytes() == before
    assert "is a folder" in complaint("convert", file, tmp_path)
    assert "is not a file" in complaint("convert", file, "/dev/null")
    assert "can't be written" in complaint("convert", file, tmp_path / "no" / "b.jsonl")
    assert "no such file" in complaint("convert", tmp_path / "no.jsonl", out)
    assert "NUL" in complaint("convert", file, "a\0b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "link.jsonl"]
    assert told("convert", file, out, "--skip-bad") == {"pairs": 1, "skipped_rows": 1, "out": str(out)}


def test_convert_reads_stdin() -> None:
    result = CliRunner().invoke(app, ["convert", "-", "-"], input=json.dumps([OK, OK]))
    assert [json.loads(line) for line in result.stdout.splitlines()] == [OK, OK]


@pytest.mark.parametrize("command", ["check", "show", "convert"])
def test_help_has_examples(command: str) -> None:
    result = data(command, "--help")
    assert result.exit_code == 0
    assert f"mlx-dpo data {command} " in result.stdout


def test_help_needs_no_mlx() -> None:
    code = (
        "import sys; from mlx_dpo.cli import data; sys.exit(bool({'mlx', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_columns_under_other_names(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"data": {"question": "q"}, "yes": "good", "no": "bad"}] * 2)
    named = ("--prompt-column", "data.question", "--chosen-column", "yes", "--rejected-column", "no")
    assert told("check", rows, *named)["pairs"] == 2
    assert told("show", 2, rows, "--model", CHECKPOINT, *named)["line"] == 2
    out = tmp_path / "out.jsonl"
    assert told("convert", rows, out, *named)["pairs"] == 2
    assert json.loads(out.read_text().splitlines()[0]) == OK
    assert told("check", rows, "--prompt-column", "question", code=2)["problems"]
