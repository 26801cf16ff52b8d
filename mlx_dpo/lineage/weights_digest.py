"""A digest of a model folder's weights that is cheap: it reads a few kilobytes of each tensor."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SAMPLED_BYTES = 4096  # from the start of each tensor: training changes all of a matrix, so a part shows it


def weights_digest(folder: Path) -> str | None:
    """Digest the names, types, shapes and first bytes of all tensors of a model folder.

    Copies have the same digest, in whatever shards they are saved; a fused or a requantized model has another. It does
    not depend on versions or on the machine, as `forward.fingerprint` does, and reads megabytes where that reads all.

    Args:
        folder: holds model*.safetensors, as mlx-lm reads it.

    Returns:
        Hexadecimal digits; None where there are no weights, or they can't be read.
    """
    tensors: dict[str, tuple[str, bytes]] = {}
    try:
        for file in sorted(folder.glob("model*.safetensors")):
            tensors |= _sample_tensors(file)
    except (OSError, ValueError, KeyError, TypeError):  # a damaged file: loading it gives the message
        return None
    if not tensors:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name, (layout, sample) in sorted(tensors.items()):
        digest.update(f"{name} {layout}\n".encode() + sample)
    return digest.hexdigest()


def _sample_tensors(file: Path) -> dict[str, tuple[str, bytes]]:
    """Type and shape as text, and the first bytes, of each tensor of a safetensors file."""
    samples = {}
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > file.stat().st_size:
            raise ValueError("the header is longer than the file")
        header: dict[str, Any] = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            stream.seek(8 + header_bytes + start)
            samples[name] = (f"{entry['dtype']} {entry['shape']}", stream.read(min(SAMPLED_BYTES, end - start)))
    return samples
