"""What of a folder goes to the Hub: a list of what may, never of what may not.

Checkpoints, caches, logs, reports and data stay, since nothing here names them; `include` asks for more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.hub_client import redact_secrets

FolderKind = Literal["adapter", "peft", "model"]

_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "chat_template.jinja", "chat_template.json"),
)
_CARD = ("README.md", "curves.png", *_LICENSES)
UPLOAD_PATTERNS: dict[FolderKind, tuple[str, ...]] = {
    "adapter": ("adapters.safetensors", "adapter_config.json", "config.yaml", *_CARD),
    "peft": ("adapter_model.safetensors", "adapter_config.json", "config.yaml", *_TOKENIZER, *_CARD),
    "model": (
        *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
        *("model*.safetensors", "model.safetensors.index.json", "*.gguf", *_TOKENIZER, *_CARD),
    ),
}
_FOLDERS = re.compile(r"(?<![^\s,=])(?:~|\.\.)?/(?:[^\s,=/]*/)*")  # of paths from the root, from home, or upwards
_PLACES = (
    "loss",
    "model",
    "data",
    "valid_data",
    "init_adapter",
    "reference",
    "adapter_path",
    "base_model_name_or_path",
)
_SEARCHED = (".json", ".yaml", ".md", ".jinja", ".txt", ".py", ".jsonl", ".html")  # for secrets
_SEARCHED_BYTES = 4_000_000


@dataclass(frozen=True)
class UploadFile:
    """A file to upload: its path in the repository, and a file on disk or bytes made for the Hub."""

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def detect_folder_kind(folder: str | Path) -> FolderKind:
    """What a folder holds. Raises `UserError` where it is nothing that can be pushed."""
    path = Path(folder)
    if (path / "adapter_config.json").is_file():
        if (path / "adapters.safetensors").is_file():
            return "adapter"
        if (path / "adapter_model.safetensors").is_file():
            return "peft"
    elif (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        return "model"
    hint = "Push a finished run's folder (adapters.safetensors, adapter_config.json) or a fused model's (config.json)."
    raise UserError("neither an adapter nor a model is here", where=Where(str(folder)), hint=hint)


def select_upload_files(
    folder: str | Path, include: Sequence[str] = (), generated_files: dict[str, bytes] | None = None
) -> list[UploadFile]:
    """The files that go, by path.

    Args:
        folder: an adapter run or a model folder.
        include: patterns of more files to take, by their path in the folder (checkpoints/*, metrics.jsonl).
        made: files made for the Hub, which stand in for those of the folder.

    Raises: `UserError`, where a pattern matches nothing, or a file holds a secret.
    """
    root = Path(folder)
    found = {UploadFile(path.name, path) for path in _named(root, UPLOAD_PATTERNS[detect_folder_kind(root)])}
    found |= {UploadFile(name, root / name) for name in _code(root)}
    for pattern in include:
        asked = [path for path in _all(root) if fnmatchcase(path.relative_to(root).as_posix(), pattern)]
        if not asked:
            raise UserError(f"no file matches --include {pattern}", where=Where(str(root)))
        found |= {UploadFile(path.relative_to(root).as_posix(), path) for path in asked}
    files = {file.path: file for file in found}
    files = {name: UploadFile(name, shareable_content(file.content)) for name, file in files.items()}
    files |= {name: UploadFile(name, content) for name, content in (generated_files or {}).items()}
    for file in files.values():
        _check_secrets(file)
    return [files[name] for name in sorted(files)]


def _named(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in patterns):
            yield path


def _all(root: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones, and none through links to folders outside."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden and path.parent.resolve().is_relative_to(root.resolve()):
            yield path


def _code(root: Path) -> Iterator[str]:
    """Python files that a model's config.json names as its own."""
    if detect_folder_kind(root) != "model":
        return
    config = read_mapping_file(root / "config.json")
    named = [config.get("model_file"), *(config.get("auto_map") or {}).values()]
    for name in {str(one).partition("--")[2] or str(one) for one in named if isinstance(one, str)}:
        file = name if name.endswith(".py") else name.rpartition(".")[0] + ".py"
        if Path(file).name == file and (root / file).is_file():
            yield file


def read_mapping_file(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; empty where it holds another thing. Raises `UserError`."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"can't be read: {str(error).splitlines()[0]}", where=Where(str(file))) from None
    return value if isinstance(value, dict) else {}


def strip_local_path(value: str) -> str:
    """Paths of this machine by their last part; the Hub's names and plain words as they are."""
    path = Path(value).expanduser()
    try:
        if path.is_absolute() or path.exists():
            return path.name
    except OSError:  # too long for a name
        pass
    return _FOLDERS.sub("", value)  # --data=/x/pairs.jsonl, sigmoid,/x/mine.py:loss


def strip_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A config without where things lie on this machine."""
    return {k: strip_local_path(v) if k in _PLACES and isinstance(v, str) and v else v for k, v in config.items()}


def shareable_content(file: Path | bytes) -> Path | bytes:
    """A file as it goes to the Hub: configs without where things lie on this machine."""
    if isinstance(file, bytes) or file.name not in ("config.yaml", "adapter_config.json"):
        return file
    values = strip_local_paths(read_mapping_file(file))
    if file.suffix == ".json":
        return (json.dumps(values, indent=4, ensure_ascii=False) + "\n").encode()
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def _check_secrets(file: UploadFile) -> None:
    if not file.path.endswith(_SEARCHED) or file.size > _SEARCHED_BYTES:
        return
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    text = data.decode("utf-8", errors="replace")
    if redact_secrets(text) != text:
        hint = "Take it out of that file (and make it invalid, if others may have seen it)."
        raise UserError("holds a token or a password, so nothing was sent", where=Where(file.path), hint=hint)
