"""The command line: each command parses, calls one function of the library, and prints."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys


def main() -> None:
    """Entry point of `mlx-dpo`. Exit codes: 0 done, 1 our fault, 2 the input's, 130 after Ctrl-C."""
    from mlx_dpo.distributed.launcher import report_exit_code

    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    code = 1  # of a traceback
    try:
        code = _exit_code()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        report_exit_code(code)
    sys.exit(code)


def _exit_code() -> int:
    from rich.markup import escape

    from mlx_dpo.cli.app import app
    from mlx_dpo.cli.console import stderr_console
    from mlx_dpo.errors import GaveUp, Interrupted, RankLost, UserError

    try:
        app()
        return 0
    except UserError as error:
        stderr_console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except Interrupted as interruption:
        stderr_console.print(f"{interruption}. Go on with: {_resume_command()}", soft_wrap=True, markup=False)
        return interruption.exit_code
    except RankLost as lost:
        hint = "What was saved stays: the same command goes on with it."
        stderr_console.print(f"[bold red]error:[/] another rank has ended without a word ({escape(str(lost))})\n{hint}")
        return 1
    # Of a fault of the training process its own traceback has been printed.
    except (GaveUp, subprocess.CalledProcessError) as report:
        stderr_console.print(f"[bold red]error:[/] {escape(str(report))}", soft_wrap=True)
        return 1


def _resume_command() -> str:
    return shlex.join(["mlx-dpo", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
