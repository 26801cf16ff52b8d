"""A Modelfile beside a GGUF file: what `ollama create` makes a model of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.export.gguf.gguf_export import GGUFMatrixType, write_gguf
from mlx_dpo.export.ollama.go_template import go_template
from mlx_dpo.export.ollama.template_inference import infer_turn_format
from mlx_dpo.export.ollama.turn_format import TurnFormat
from mlx_dpo.forward.model_loading import load_tokenizer
from mlx_dpo.utils.atomic_write import require_new, write_new
from mlx_dpo.utils.formatting import shell_command
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

_UNKNOWN_TEMPLATE = (
    "the model's chat template can't be written as Ollama's TEMPLATE. Without one, Ollama uses its own version of the "
    "template in the GGUF file if it knows it, and else puts no turns around a prompt: compare its answers"
)
_NO_TEMPLATE = "the model has no chat template: Ollama continues a prompt"
_NO_SYSTEM = "the model's chat template takes no system message: Ollama's is left out"
_DATED = "the model's chat template writes the current date: TEMPLATE has the date of the export"


@dataclass(frozen=True)
class GGUFWithModelfile:
    """A written GGUF file and its Modelfile.

    Attributes:
        file: the GGUF file.
        modelfile: the Modelfile.
        notes: sentences for the user, on what Ollama does otherwise than mlx-lm.
    """

    file: Path
    modelfile: Path
    notes: tuple[str, ...]

    @property
    def create_command(self) -> str:
        """The command that makes it a model of Ollama."""
        return shell_command("ollama", "create", self.file.stem, "-f", self.modelfile)


def write_gguf_with_modelfile(
    model: str | Path, file: str | Path, matrix_type: GGUFMatrixType = "f16", *, progress: Progress = NO_PROGRESS
) -> GGUFWithModelfile:
    """Write a model as a GGUF file, and beside it NAME.Modelfile, for Ollama.

    Args:
        model: folder or Hub id of an mlx-lm model, as for `write_gguf`.
        file: the new GGUF file.
        matrix_type: type of the matrices.
        progress: receives the number of tensors written so far.

    Returns:
        Both files.

    Raises:
        UserError: as `write_gguf`, or the Modelfile exists or can't be written.
    """
    require_modelfile_new(file)
    target = write_gguf(model, file, matrix_type, progress=progress)
    text, notes = modelfile_text(target.name, load_tokenizer(str(model)))
    with write_new(modelfile_path(target)) as partial:
        partial.write_text(text, encoding="utf-8")
    return GGUFWithModelfile(target, modelfile_path(target), notes)


def modelfile_path(file: str | Path) -> Path:
    """The Modelfile of a GGUF file; each has its own, so that a folder can hold several."""
    return Path(file).with_suffix(".Modelfile")


def require_modelfile_new(file: str | Path) -> None:
    """Check that neither a GGUF file nor its Modelfile exists yet. Raises `UserError`."""
    for target in (Path(file), modelfile_path(file)):
        require_new(target)


def modelfile_text(gguf_name: str, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """The text of a Modelfile.

    Args:
        gguf_name: name of the GGUF file in the same folder.
        tokenizer: as mlx_lm.load returns it.

    Returns:
        The text, and notes for the user, which are also comments in it.
    """
    turn_format = infer_turn_format(tokenizer)
    notes = tuple(_notes(tokenizer, turn_format))
    lines = [f"# Written by mlx-dpo, for: ollama create NAME -f {modelfile_path(gguf_name)}"]
    lines.append("# Before you share the model, add its base model's license as LICENSE.")
    lines += [f"# Note: {note}." for note in notes]
    lines.append(f"FROM ./{gguf_name}")
    if turn_format is not None:
        lines.append(f'TEMPLATE """{go_template(_without_added_start(turn_format, tokenizer))}"""')
    lines += [f'PARAMETER stop "{token}"' for token in _stop_texts(tokenizer)]
    return "\n".join(lines) + "\n", notes


def _notes(tokenizer: Any, turn_format: TurnFormat | None) -> list[str]:
    if turn_format is None:
        return [_UNKNOWN_TEMPLATE if tokenizer.has_chat_template else _NO_TEMPLATE]
    dated = "strftime_now" in str(tokenizer.chat_template)
    return [note for note, applies in ((_NO_SYSTEM, turn_format.system is None), (_DATED, dated)) if applies]


def _without_added_start(turn_format: TurnFormat, tokenizer: Any) -> TurnFormat:
    """The format without the token that llama.cpp puts in front of a text itself."""
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id
    return turn_format.without_start(bos) if adds_bos else turn_format


def _stop_texts(tokenizer: Any) -> list[str]:
    """The texts of the tokens that end a completion in mlx-lm."""
    texts = [tokenizer.decode([token_id]) for token_id in sorted(tokenizer.eos_token_ids)]
    return [text for text in texts if text.strip() and '"' not in text]
