"""The forward path that is chosen for each model type, and whether it is still the one of an earlier mlx-lm.

    python benchmarks/model_paths.py [TYPE ...] > docs/benchmarks/model-paths.json
    python benchmarks/model_paths.py --compare docs/benchmarks/model-paths.json [TYPE ...]

Tiny random models of the types of tests/forward/families.py; other modules of mlx_lm.models that hold a model are
listed as untested, so that a new type is noticed. With --compare, prints a Markdown table of the types whose path is
another one, or which fail or are new, and exits with code 1 if there are any. On Linux, where the few types with Metal
kernels fail.
"""

from __future__ import annotations

import argparse
import json
import logging
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import mlx_lm.models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the models are those of the tests

from mlx_dpo.forward.network import Network, PromptSharing
from tests.forward.families import CONFIGS, tiny

UNTESTED = "untested"


def path_text(sharing: PromptSharing, *, head_split: bool) -> str:
    """How a forward path is written in the JSON file and in the table."""
    return f"{sharing.name.lower()}, {'head split' if head_split else 'whole model'}"


def model_path(model_type: str) -> str:
    """The forward path that is chosen for a model type, or what it fails with.

    Args:
        model_type: name of a module of mlx_lm.models.
    """
    if model_type not in CONFIGS:
        return UNTESTED
    try:
        network = Network.from_model(tiny(model_type))
    except Exception as error:  # of mlx-lm's code, which may be any
        return f"fails: {type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
    return path_text(network.sharing, head_split=network.head_split is not None)


def model_types() -> list[str]:
    """All types with a config here, and the other modules of mlx_lm.models that hold a model."""
    folder = Path(mlx_lm.models.__path__[0])
    modules = (module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg)
    holding = (name for name in modules if "class ModelArgs" in (folder / f"{name}.py").read_text(encoding="utf-8"))
    return sorted({*CONFIGS, *holding})


def differences(before: Mapping[str, str], after: Mapping[str, str], types: Iterable[str]) -> list[str]:
    """A Markdown table of the types whose path is another one than before; empty if there are none.

    Args:
        before: paths by model type, the baseline.
        after: paths by model type, now.
        types: those to compare; one that is missing on a side is `-` there.
    """
    changed = [name for name in types if before.get(name) != after.get(name)]
    rows = [f"| `{name}` | {before.get(name, '-')} | {after.get(name, '-')} |" for name in changed]
    return ["| model type | path before | path now |", "| --- | --- | --- |", *rows] if rows else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="a model type; by default all")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier output of this command")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # on configs of types that it does not know
    paths = {model_type: model_path(model_type) for model_type in arguments.types or model_types()}
    versions = {name: version(name) for name in ("mlx", "mlx-lm")}
    if arguments.compare is None:
        print(json.dumps({"versions": versions, "paths": paths}, indent=2))
        return 0
    baseline = json.loads(arguments.compare.read_text(encoding="utf-8"))
    types = arguments.types or sorted({*baseline["paths"], *paths})
    table = differences(baseline["paths"], paths, types)
    now, then = (f"mlx-lm {each['mlx-lm']} with mlx {each['mlx']}" for each in (versions, baseline["versions"]))
    print(f"{now}, compared with {then}:")
    print("\n".join(["", *table]) if table else f"all {len(types)} model types have the same forward path.")
    return 1 if table else 0


if __name__ == "__main__":
    sys.exit(main())
