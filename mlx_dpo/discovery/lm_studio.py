"""Models in LM Studio's folder, where each is in publisher/name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_POINTER = ".lmstudio-home-pointer"  # in the user's home: the path of LM Studio's own folder
_HOMES = (".lmstudio", ".cache/lm-studio")  # in the user's home; the latter is of versions before 0.3.6


def lm_studio_folders() -> list[Path]:
    """The folders that LM Studio may keep models in, whether they exist or not."""
    return list(dict.fromkeys(_folders()))


def lm_studio_models() -> dict[str, Path]:
    """The folders of all models by publisher/name, in alphabetical order; the first folder with a name wins."""
    models: dict[str, Path] = {}
    for folder in lm_studio_folders():
        with suppress(OSError):
            for path in sorted(folder.glob("[!.]*/[!.]*")):
                if path.is_dir():
                    models.setdefault(f"{path.parent.name}/{path.name}", path)
    return dict(sorted(models.items(), key=lambda item: item[0].casefold()))


def _folders() -> Iterator[Path]:
    home = Path.home()
    homes = [home / name for name in _HOMES]
    with suppress(OSError, UnicodeDecodeError):
        pointer = (home / _POINTER).read_text(encoding="utf-8").strip()
        homes = [Path(pointer), *homes] if pointer else homes
    for folder in homes:
        with suppress(OSError, ValueError, AttributeError):
            chosen = json.loads((folder / "settings.json").read_text(encoding="utf-8")).get("downloadsFolder")
            if isinstance(chosen, str) and chosen:
                yield Path(chosen)
    yield from (folder / "models" for folder in homes)
