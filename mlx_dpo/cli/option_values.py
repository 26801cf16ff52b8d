"""Values that the shell completes, by option. Nothing of mlx is imported: a Tab key has to be quick.

Each function takes what was typed so far, and returns the values that begin with it. Without any, the shell completes
names of files and folders; so does what looks like a path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

_DECLARED_LOSS = re.compile(r"^@declare_loss\(.*?^def (\w+)", re.MULTILINE | re.DOTALL)
_PATH_STARTS = (".", "/", "~")


def complete_model(incomplete: str) -> list[str]:
    """Models in the Hub cache and in LM Studio's folder, and models in this folder."""
    if incomplete.startswith(_PATH_STARTS):
        return []
    from mlx_dpo.discovery.installed_models import complete_model_names

    folders = [path.parent.as_posix() for path in sorted(Path().glob("*/config.json"))]
    return _beginning(incomplete, [*complete_model_names(), *folders])


def complete_reference(incomplete: str) -> list[str]:
    """The kinds of reference, and models."""
    return [*_beginning(incomplete, ("initial", "base", "none")), *complete_model(incomplete)]


def complete_judge(incomplete: str) -> list[str]:
    """Python files, whose functions follow a colon, addresses of APIs, adapters and models."""
    if incomplete.startswith(_PATH_STARTS):
        return []
    files = [f"{path.name}:" for path in sorted(Path().glob("*.py"))]
    adapters = [path.parent.as_posix() for path in sorted(Path().glob("*/adapter_config.json"))]
    values = [*files, "https://", "http://localhost:", *adapters, *complete_model(incomplete)]
    return _beginning(incomplete, values)


def complete_loss(incomplete: str) -> list[str]:
    """The names of the losses; after a comma too, for a sum of them."""
    before, comma, name = incomplete.rpartition(",")
    return [f"{before}{comma}{known}" for known in _beginning(name, loss_names())]


def complete_trackers(incomplete: str) -> list[str]:
    """The names of trackers, several with commas."""
    from mlx_dpo.reporting.trackers import TRACKERS

    before, comma, name = incomplete.rpartition(",")
    return [f"{before}{comma}{known}" for known in _beginning(name, TRACKERS)]


def loss_names() -> list[str]:
    """The names of the losses, read from their source: importing it would import mlx."""
    folder = Path(__file__).parent.parent / "objectives" / "losses"
    files = sorted(folder.glob("*.py"))
    return sorted(name for file in files for name in _DECLARED_LOSS.findall(file.read_text(encoding="utf-8")))


def _beginning(incomplete: str, values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value.startswith(incomplete)]


# What --help shows in the place of a setting's value, and what completes it.
SETTING_VALUES: dict[str, tuple[str, Callable[[str], list[str]] | None]] = {
    "model": ("MODEL", complete_model),
    "init_adapter": ("PATH", None),
    "lora_keys": ("NAME,NAME", None),
    "data": ("DATA", None),
    "valid_data": ("DATA", None),
    "chat_template_kwargs": ("JSON", None),
    "loss": ("LOSS", complete_loss),
    "reference": ("REFERENCE", complete_reference),
    "judge": ("JUDGE", complete_judge),
    "judge_model": ("MODEL", None),
    "prompts": ("PATH", None),
    "adapter_path": ("PATH", None),
    "memory_limit": ("SIZE", None),
    "report_to": ("NAME,NAME", complete_trackers),
    "hub_model_id": ("USER/NAME", None),
}
