"""The command line: each command parses, calls one function of the library, and prints."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys


def main() -> None:
    """Entry point of `mlx-dpo`. Exit codes: 0 done, 1 our fault, 2 the input's, 130 after Ctrl-C."""
    from rich.markup import escape

    from mlx_dpo.cli.app import app
    from mlx_dpo.cli.output import notes
    from mlx_dpo.errors import GaveUp, Interrupted, UserError

    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        app()
    except UserError as error:
        notes.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except Interrupted as interruption:
        notes.print(f"{interruption}. Go on with: {_resume_command()}", soft_wrap=True, markup=False)
        sys.exit(interruption.exit_code)
    except GaveUp as report:
        notes.print(f"[bold red]error:[/] {escape(str(report))}", soft_wrap=True)
        sys.exit(1)
    except subprocess.CalledProcessError as fault:  # its own traceback has been printed
        notes.print(f"[bold red]error:[/] {escape(str(fault))}", soft_wrap=True)
        sys.exit(1)


def _resume_command() -> str:
    return shlex.join(["mlx-dpo", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
