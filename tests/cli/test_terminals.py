"""Output for terminals of all kinds, for pipes, and for readers that go away."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

MLX_DPO = [sys.executable, "-m", "mlx_dpo"]


def in_terminal(arguments: list[str], **environment: str) -> str:
    """What a command writes to a terminal of 40 columns."""
    main, side = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "40", **environment}
    with subprocess.Popen([*MLX_DPO, *arguments], stdout=side, stderr=side, stdin=side, env=variables) as process:
        os.close(side)
        written = b""
        try:
            while block := os.read(main, 65536):
                written += block
        except OSError:  # Linux reports the end of a terminal as an error
            pass
        finally:
            os.close(main)
        assert process.wait() in (0, 2)
    return written.decode()


def test_colors() -> None:
    help = ["losses", "--help"]
    assert "\x1b[1;36m  --json" in in_terminal(help)
    without_color = in_terminal(help, NO_COLOR="1")
    assert "--json" in without_color and "36m" not in without_color
    plain = in_terminal(help, TERM="dumb")
    assert "\x1b" not in plain and max(map(len, plain.splitlines())) <= 40


def test_errors_have_colors_only_where_a_terminal_shows_them() -> None:
    assert "\x1b[1;31merror:" in in_terminal(["trian"])
    for variable in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "31m" not in in_terminal(["trian"], **variable)


def test_a_dumb_terminal_gets_lines_and_no_spinner(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "none"}')
    written = in_terminal(["models", str(tmp_path)], TERM="dumb", **home)
    assert "\x1b" not in written and "Estimating memory\r\n" in written and "no model type" in written


@pytest.mark.parametrize("line", ["--help", "losses", "losses --json", "trian"])
def test_a_reader_that_goes_away_is_no_fault(line: str) -> None:
    """As in `mlx-dpo losses | head -1`."""
    for closed in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
        process = subprocess.run([*MLX_DPO, *line.split()], **streams, text=True)  # type: ignore[call-overload]
        os.close(writer)
        other = process.stderr if closed == "stdout" else process.stdout
        assert "Traceback" not in other and "Exception" not in other and process.returncode in (0, 1, 2)


def test_pipes_get_no_colors_and_whole_words() -> None:
    ran = subprocess.run([*MLX_DPO, "losses", "--help"], capture_output=True, text=True)
    assert "\x1b" not in ran.stdout and ran.stdout.startswith("Usage: mlx-dpo losses") and ran.stderr == ""
