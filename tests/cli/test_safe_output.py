"""What is printed of others' text: no terminal escapes, no markup, no secrets, and commands that can be copied."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mlx_dpo.cli import console
from mlx_dpo.cli.console import SafeConsole
from mlx_dpo.reporting.result_summary import next_commands
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL

Cli = Callable[..., CommandResult]
EVIL = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\re[bold]f[/x]:warning:"
CONTROLS = set(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) - {"\n"}
SHOWN = "a]0;titleb[2Jc31mde[bold]f[/x]:warning:"


def printed(show: Callable[[SafeConsole], Any], **options: Any) -> str:
    file = io.StringIO()
    show(SafeConsole(file=file, width=200, **options))
    return file.getvalue()


def table_of(text: str) -> Table:
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize(
    "show",
    [
        lambda out: out.print(EVIL),
        lambda out: out.print(EVIL, soft_wrap=True),
        lambda out: out.print(Text(EVIL, "bold"), soft_wrap=True),
        lambda out: out.print(table_of(EVIL)),
    ],
)
def test_control_characters_and_markup_are_text(show: Callable[[SafeConsole], Any]) -> None:
    out = printed(show)
    assert not CONTROLS & set(out)
    assert SHOWN in out.replace("\n", "")


def test_a_table_stays_straight() -> None:
    lines = printed(lambda out: out.print(table_of(EVIL))).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1


def test_styles_and_live_displays_still_work_in_a_terminal() -> None:
    def show(out: SafeConsole) -> None:
        out.print(Text("x", "bold"))
        with out.status(EVIL) as status:
            status.update(EVIL)
        with Progress(TextColumn("{task.description}", markup=False), console=out) as bar:
            bar.add_task(EVIL)

    out = printed(show, force_terminal=True, color_system="standard")
    assert "\x1b[1mx\x1b[0m" in out
    assert SHOWN in out and "\x1b]0" not in out and "\x1b[2J" not in out and "\x9b" not in out


def test_json_escapes_them_and_loads_to_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"text": EVIL})
    out = capsys.readouterr().out
    assert not CONTROLS & set(out) and json.loads(out) == {"text": EVIL}


def test_messages_about_someones_adapter(mlx_dpo: Cli, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(TRL / "adapter", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "model": EVIL}))
    ran = mlx_dpo("compare", "--adapter-path", adapter, "--prompt", "Hi")
    assert ran.code == 2 and not CONTROLS & set(ran.out + ran.err)
    assert "a]0;titleb[2Jc31mde[bold]f[/x]:warning:" in ran.err.replace("\n", "")


def test_models_answers(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ([EVIL], [EVIL])
    monkeypatch.setattr("mlx_dpo.sampling.generation.generate_before_and_after", lambda *_, **__: answers)
    ran = mlx_dpo("compare", "--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--prompt", EVIL)
    assert ran.code == 0 and not CONTROLS & set(ran.out + ran.err) and "title" in ran.out


def test_compare_without_an_adapter_says_so(mlx_dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ((), ("--model", CHECKPOINT)):
        ran = mlx_dpo("compare", *model, "--prompt", "Hi")
        assert ran.code == 2 and "adapters: no adapter: there is no such folder" in ran.err
    Path("adapters").write_text("")
    assert "this is a file" in mlx_dpo("compare", "--prompt", "Hi").err


def test_a_dangling_link_as_run_folder_is_called_that(mlx_dpo: Cli, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    for run in (tmp_path / "link", tmp_path / "link" / "run"):
        ran = mlx_dpo("train", "--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", run, "--iters", 1)
        assert ran.code == 2 and "is a link to gone, which does not exist" in ran.err


def test_next_commands_quote_paths() -> None:
    run, model = Path("my runs/a'b"), "my model"
    for command in next_commands(run, model):
        words = shlex.split(command)
        assert any(word.startswith(str(run)) for word in words), command
        assert "--model" not in words or words[words.index("--model") + 1] == model
