"""Models on this machine: in the Hub cache, in LM Studio's folder, and in folders that the user names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mlx_dpo.discovery.hub_cache import cached_repos, latest_snapshot
from mlx_dpo.discovery.lm_studio import lm_studio_models
from mlx_dpo.discovery.model_contents import ModelContents, is_model_folder, read_contents
from mlx_dpo.utils.hub_client import HubRepoRef


class ModelSource(StrEnum):
    """Where a model was found."""

    HUB = "Hub cache"
    LM_STUDIO = "LM Studio"
    FOLDER = "folder"


@dataclass(frozen=True)
class InstalledModel:
    """A model on this machine.

    Attributes:
        name: what --model takes: a Hub id, publisher/name in LM Studio's folder, or a path.
        source: where it was found.
        path: its folder.
        contents: what is in the folder.
    """

    name: str
    source: ModelSource
    path: Path
    contents: ModelContents

    @property
    def is_complete_language_model(self) -> bool:
        """Whether all files of a language model are there that mlx-lm may load, as far as their names say."""
        contents = self.contents
        return contents.problem is None and contents.missing is None and contents.is_language_model


def installed_models() -> list[InstalledModel]:
    """All models in the Hub cache and in LM Studio's folder, in alphabetical order."""
    hub = list(_hub_models())
    names = {model.name for model in hub if model.is_complete_language_model}
    return sorted([*hub, *_lm_studio_models(names)], key=lambda model: model.name.casefold())


def models_in_folders(folders: Iterable[Path]) -> list[InstalledModel]:
    """The models in folders: each is a model itself, or has models in it, or in folders in it."""
    paths = (path for folder in folders for path in _model_folders(folder))
    return [InstalledModel(str(path), ModelSource.FOLDER, path, read_contents(path)) for path in paths]


def complete_model_names() -> list[str]:
    """What --model takes: the names of the complete language models, in alphabetical order."""
    return [model.name for model in installed_models() if model.is_complete_language_model]


def find_in_lm_studio(name: str) -> Path | None:
    """The folder of a model that LM Studio has, by publisher/name; None if --model finds it elsewhere, or nowhere.

    Args:
        name: the value of --model.
    """
    if HubRepoRef.parse(name) is None or Path(name).exists():
        return None
    models = (model for model in installed_models() if model.name == name and model.source is ModelSource.LM_STUDIO)
    return next((model.path for model in models if model.is_complete_language_model), None)


def _hub_models() -> Iterator[InstalledModel]:
    for repo_id, repo in cached_repos("model").items():
        snapshot = latest_snapshot(repo)
        if snapshot is None:
            continue
        name = repo_id if HubRepoRef.parse(repo_id) else str(snapshot)  # such as gpt2, without an owner
        yield InstalledModel(name, ModelSource.HUB, snapshot, read_contents(snapshot))


def _lm_studio_models(names_in_hub_cache: set[str]) -> Iterator[InstalledModel]:
    for name, path in lm_studio_models().items():
        # What the Hub cache has too would be taken from there.
        model_name = str(path) if name in names_in_hub_cache else name
        yield InstalledModel(model_name, ModelSource.LM_STUDIO, path, read_contents(path))


def _model_folders(folder: Path) -> Iterator[Path]:
    if is_model_folder(folder):
        yield folder
        return
    for pattern in ("[!.]*", "[!.]*/[!.]*"):
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_dir()]
        yield from (path for path in paths if is_model_folder(path) and not is_model_folder(path.parent))
