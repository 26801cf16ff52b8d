"""The page that reviews a file, without a model."""

from __future__ import annotations

import getpass
from pathlib import Path

from mlx_dpo.errors import UserError, Where
from mlx_dpo.web.page_app import CollectPage
from mlx_dpo.web.review_file import ReviewFile, default_output
from mlx_dpo.web.review_progress import ReviewProgress
from mlx_dpo.web.review_routes import ReviewRoutes
from mlx_dpo.web.verdicts import VerdictFiles


def open_review_page(path: str, output: Path | None, labeller: str | None, repeat: float) -> CollectPage:
    """Read a file to review, and name the file of verdicts.

    Args:
        path: the file: rows with completions, in any format.
        output: the file of verdicts; None: beside the file, with the labeller's name in its own.
        labeller: the name of the person; None: that of the system's user. If that is unknown, the page requests one.
        repeat: share of the comparisons, 0 to 1, that are shown a second time.

    Raises:
        UserError: the file can't be read or has nothing to judge, or it is the output.
    """
    if path == "-":
        raise UserError("is read again after a restart: name a file", field="review")
    labeller = (labeller or _user_name()).strip() or None
    output = output or default_output(path, labeller or "")
    if output.exists() and Path(path).exists() and output.samefile(path):
        raise UserError("is the file to review", where=Where(str(output)), field="output", hint="Name another file.")
    verdicts = VerdictFiles(output, labeller)
    progress = ReviewProgress(ReviewFile.read(path), verdicts, repeat)
    return CollectPage(None, verdicts, review=ReviewRoutes(progress))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        return ""
