"""How a model can be run, on disk, so that it is tried once and not at every start.

One small file for a model as it is adapted, in ~/.cache/mlx-dpo/paths. Its name is a digest of all that the outcome
depends on: the tensors (a freshly adapted model is the base), which modules the model has, the code of these modules
and of this package, and the versions and the device. A file that is damaged, or not the model's, is not used and is
written again.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import mlx.nn as nn

from mlx_dpo.forward.model_digest import model_digest
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.utils.checked_file import read_checked, write_checked

_SHARED_MODULES = ("mlx_lm.models.base", "mlx_lm.models.cache")  # which no module of a model belongs to
_OWN_CODE = ("forward", "data")  # packages of this one that a forward pass goes through


@dataclass(frozen=True)
class RunnablePath:
    """A way of running a model that agreed with its plain forward pass.

    Attributes:
        sharing: name of the `PromptSharing`.
        has_head_split: whether body and head are run apart.
    """

    sharing: str
    has_head_split: bool


class PathCache:
    """The way of running one model, on disk where the folder can be written to."""

    def __init__(self, model: nn.Module, digests: Mapping[str, str]) -> None:
        """Name the file of a model.

        Args:
            model: the model, with its adapters.
            digests: its `tensor_digests`.
        """
        digest = model_digest(model, digests, "paths")
        for name, module in sorted(model.named_modules()):
            digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}\n".encode())
        modules = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
        for name in sorted({*modules, *_SHARED_MODULES}):
            digest.update(f"{name} {_source_digest(name)}\n".encode())
        digest.update(own_code_digest().encode())
        self.key = digest.hexdigest()
        self.path = path_cache_folder() / f"{self.key}.json"

    def read(self) -> RunnablePath | None:
        """The way that was found before; None where there is none, or its file is damaged."""
        values = read_checked(self.path, self.key)
        return RunnablePath(**values) if values else None

    def write(self, path: RunnablePath) -> None:
        """Keep a way."""
        write_checked(self.path, self.key, asdict(path))


def path_cache_folder() -> Path:
    """Where the files are."""
    return cache_folder("paths")


def list_path_files() -> list[Path]:
    """All files of the cache."""
    return sorted(path_cache_folder().glob("*.json"))


@cache
def _source_digest(module: str) -> str:
    """A digest of a module's source, which may have changed under the same version; empty without one."""
    with suppress(OSError, TypeError, KeyError):
        return hashlib.blake2b(inspect.getsource(sys.modules[module]).encode(), digest_size=8).hexdigest()
    return ""


@cache
def own_code_digest(packages: tuple[str, ...] = _OWN_CODE) -> str:
    """A digest of the code of this project that a forward pass goes through, or of other packages of it."""
    digest, package = hashlib.blake2b(digest_size=8), Path(__file__).parent.parent
    for name in packages:
        for file in sorted((package / name).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
