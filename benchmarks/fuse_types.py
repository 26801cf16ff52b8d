"""Which model types `fuse` merges, and how exactly: a table of nearly all that mlx-lm has.

    python benchmarks/fuse_types.py [--out docs/benchmarks/fuse-types.md] [TYPE ...]

Tiny random models with random adapters on the layers that `train` adapts by default, as in
tests/export/test_fuse_types.py. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the models are those of the tests

from tests.export.family_fuse import CASES, FuseOutcome, fuse_family
from tests.forward.families import CONFIGS

ABOUT = """# Model types that can be fused

Made by `python benchmarks/fuse_types.py --out docs/benchmarks/fuse-types.md`, with mlx-lm {version}. A tiny random
model of nearly every type that mlx-lm has, with a random adapter on the layers that `train` adapts by
default, is fused and loaded with plain `mlx_lm.load`. A number is the difference of its logits from those with the
adapter, relative to these: the largest of 24 tokens; at 8 bits the median, since rounding may send a token to other
experts. The adapters themselves change the logits by about a half. `tests/export/test_fuse_types.py` holds every type
to {tolerances}.

What is refused is refused with the sentence in the table.

"""


def rows(types: list[str]) -> Iterator[str]:
    """The table, line by line."""
    yield f"| type | {' | '.join(case.name for case in CASES.values())} |"
    yield f"| --- |{' --- |' * len(CASES)}"
    for name in types:
        cells = []
        for case in CASES.values():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(cell(fuse_family(Path(folder), name, case)))
        yield f"| `{name}` | {' | '.join(cells)} |"


def cell(outcome: FuseOutcome) -> str:
    """What the table says of one case."""
    return outcome.refusal or f"{outcome.error:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; by default all")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # on configs of types that it does not know
    tolerances = "; ".join(f"{case.tolerance:.0e} for {case.name}" for case in CASES.values())
    page = ABOUT.format(version=version("mlx-lm"), tolerances=tolerances)
    for row in rows(arguments.types or list(CONFIGS)):
        print(row, flush=True)
        page += f"{row}\n"
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
