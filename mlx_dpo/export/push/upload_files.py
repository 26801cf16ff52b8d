"""The files of a folder that are uploaded to the Hub: a list of allowed patterns.

Checkpoints, caches, logs, reports and data match none of them; `include` adds more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mlx_dpo.adapters.adapter_folder import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, REWARD_HEAD_FILE
from mlx_dpo.config_files import CONFIG_FILE
from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.folder_kind import FolderKind, detect_folder_kind, read_mapping_file
from mlx_dpo.export.local_paths import shareable_content
from mlx_dpo.export.peft.peft_format import PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE
from mlx_dpo.forward.model_loading import NAMED_TEMPLATES_FOLDER
from mlx_dpo.lineage.lineage_file import LINEAGE_FILE, read_lineage
from mlx_dpo.utils.hub_client import redact_secrets

_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "chat_template.jinja", "chat_template.json"),
    f"{NAMED_TEMPLATES_FOLDER}/*.jinja",
)
_CARD = ("README.md", "curves.png", *_LICENSES)
UPLOAD_PATTERNS: dict[FolderKind, tuple[str, ...]] = {
    "adapter": (ADAPTER_WEIGHTS_FILE, REWARD_HEAD_FILE, ADAPTER_CONFIG_FILE, CONFIG_FILE, LINEAGE_FILE, *_CARD),
    "peft": (PEFT_WEIGHTS_FILE, PEFT_CONFIG_FILE, CONFIG_FILE, LINEAGE_FILE, *_TOKENIZER, *_CARD),
    "model": (
        *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", LINEAGE_FILE),
        *("model*.safetensors", "model.safetensors.index.json", "*.gguf", *_TOKENIZER, *_CARD),
    ),
}
_TEXT_SUFFIXES = (".json", ".yaml", ".md", ".jinja", ".txt", ".py", ".jsonl", ".html")  # searched for secrets
_MAX_SEARCHED_BYTES = 4_000_000


@dataclass(frozen=True)
class UploadFile:
    """A file to upload.

    Attributes:
        path: its path in the repository.
        content: a file on disk, or bytes generated for the Hub.
    """

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def select_upload_files(
    folder: str | Path, include: Sequence[str] = (), generated_files: dict[str, bytes] | None = None
) -> list[UploadFile]:
    """Select the files of a folder to upload, sorted by path.

    Args:
        folder: an adapter's or a model's folder.
        include: patterns of further files, matched against paths relative to the folder (checkpoints/*).
        generated_files: contents by file name that replace those of the folder.

    Raises:
        UserError: a pattern matches nothing, or a file contains a secret.
    """
    root = Path(folder)
    kind = detect_folder_kind(root)
    selected = {path.relative_to(root).as_posix(): path for path in _matching_files(root, UPLOAD_PATTERNS[kind])}
    if read_lineage(root) is None:  # of another program
        selected.pop(LINEAGE_FILE, None)
    if kind == "model":
        selected |= {name: root / name for name in _custom_code_files(root)}
    for pattern in include:
        paths = {path.relative_to(root).as_posix(): path for path in _all_files(root)}
        matches = {name: path for name, path in paths.items() if fnmatchcase(name, pattern)}
        if not matches:
            raise UserError(f"no file matches --include {pattern}", where=Where(str(root)))
        selected |= matches
    contents = {name: shareable_content(path) for name, path in selected.items()} | (generated_files or {})
    files = [UploadFile(name, contents[name]) for name in sorted(contents)]
    for file in files:
        _refuse_secrets(file)
    return files


def _matching_files(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    templates = root / NAMED_TEMPLATES_FOLDER
    is_own = templates.is_dir() and templates.resolve().is_relative_to(root.resolve())
    for path in [*root.iterdir(), *(templates.iterdir() if is_own else ())]:
        name = path.relative_to(root).as_posix()
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in patterns):
            yield path


def _all_files(root: Path) -> Iterator[Path]:
    """Every file below a folder, without hidden ones and without those behind links to other folders."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden and path.parent.resolve().is_relative_to(root.resolve()):
            yield path


def _custom_code_files(root: Path) -> Iterator[str]:
    """The Python files that a model's config.json refers to."""
    config = read_mapping_file(root / "config.json")
    references = [config.get("model_file"), *(config.get("auto_map") or {}).values()]
    for reference in references:
        if not isinstance(reference, str):
            continue
        name = reference.partition("--")[2] or reference  # auto_map: [user/repo--]module.Class
        file = name if name.endswith(".py") else name.rpartition(".")[0] + ".py"
        if Path(file).name == file and (root / file).is_file():
            yield file


def _refuse_secrets(file: UploadFile) -> None:
    if not file.path.endswith(_TEXT_SUFFIXES) or file.size > _MAX_SEARCHED_BYTES:
        return
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    text = data.decode("utf-8", errors="replace")
    if redact_secrets(text) != text:
        hint = "Remove it from that file, and revoke it if others may have seen it."
        raise UserError("contains a token or a password, so nothing was sent", where=Where(file.path), hint=hint)
