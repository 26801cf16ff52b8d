"""The command line. A command parses its arguments, calls one function of the library, and prints the result."""

from __future__ import annotations

import shlex
import subprocess
import sys
import traceback

REPORT_HINT = "To report it, add what `mlx-dpo doctor --bug-report` prints."


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 a fault of ours or the machine's, 2 a user error, 130 after Ctrl-C."""
    from mlx_dpo.distributed.launcher import report_exit_code
    from mlx_dpo.utils.signals import exit_on_stop_signals

    exit_on_stop_signals()
    code = 1  # if there is a traceback
    try:
        code = _run_command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Exception:
        traceback.print_exc()
        print(f"\nThis is a fault of mlx-dpo or of this machine. {REPORT_HINT}", file=sys.stderr)
    finally:
        report_exit_code(code)
    sys.exit(code)


def _run_command() -> int:
    """Run the command and print its error, if any. Returns the exit code."""
    from rich.text import Text

    from mlx_dpo.cli.app import app
    from mlx_dpo.cli.console import print_message, stderr_console
    from mlx_dpo.cli.usage_errors import click_errors
    from mlx_dpo.errors import GaveUp, Interrupted, RankLost, UserError
    from mlx_dpo.utils.mlx_backend import backend_error

    try:
        # Returns the code of `typer.Exit`, or what the command returns, which is None.
        return app(prog_name="mlx-dpo", standalone_mode=False) or 0
    except Interrupted as interruption:
        print_message(f"{interruption}. Resume with: {_resume_command()}")
        return interruption.exit_code
    except UserError as error:
        message, code = str(error), 2
    except ImportError as error:
        if (backend := backend_error(error)) is None:
            raise
        message, code = str(backend), 2
    except click_errors.NoArgsIsHelpError as error:
        error.show()
        return 2
    except RankLost as error:
        message = (
            f"lost connection to another rank ({error})\nThe last checkpoint is kept: resume with the same command."
        )
        code = 1
    except GaveUp as error:
        message, code = str(error), 1
    except subprocess.CalledProcessError as error:
        message = (
            f"{error.cmd} failed with exit status {error.returncode}; what it printed is above.\n"
            f"Steps that were saved are kept: the same command resumes from them. {REPORT_HINT}"
        )
        code = 1
    stderr_console.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
    return code


def _resume_command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["mlx-dpo", *arguments, "--resume"])
