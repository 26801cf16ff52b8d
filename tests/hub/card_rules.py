"""What the Hub's /api/validate-yaml asks of a model card's metadata, as its documentation has it.

https://huggingface.co/docs/hub/model-cards and hub-docs/modelcard.md; licenses from hub-docs/repositories-licenses.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENSES = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other"""
RELATIONS = ("adapter", "merge", "quantized", "finetune")
PIPELINES = ("text-generation", "text-classification", "image-text-to-text", "feature-extraction")
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")


def errors_of(content: str) -> list[str]:
    """What is wrong with a card's metadata, in sentences."""
    block = BLOCK.search(content)
    if not block:
        return ["the metadata block is missing"]
    try:
        data = yaml.safe_load(block.group(2))
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"]
    return list(_of_data(data)) if isinstance(data, dict) else ["the metadata is not a mapping"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _of_data(data: dict[str, Any]) -> Any:
    for name in _list(data.get("license")):
        if name not in LICENSES.split():
            yield f'"license" must be one of [{", ".join(sorted(LICENSES.split()))}], not {name!r}'
    if data.get("license") != "other" and ("license_name" in data):
        yield '"license_name" goes with "license: other"'
    for key in ("base_model", "datasets"):
        for name in _list(data.get(key)):
            if not isinstance(name, str) or not REPO_ID.fullmatch(name) or ".." in name or "--" in name:
                yield f'"{key}": {name!r} is not a valid repo id'
    if data.get("base_model_relation") not in (None, *RELATIONS):
        yield f'"base_model_relation" must be one of {RELATIONS}'
    if data.get("pipeline_tag") not in (None, *PIPELINES):
        yield f'"pipeline_tag" must be one of {PIPELINES}'
    for name in _list(data.get("language")):
        if not isinstance(name, str) or not LANGUAGE.fullmatch(name):
            yield f'"language": {name!r} is no ISO 639 code'
    if not all(isinstance(tag, str) for tag in _list(data.get("tags"))):
        yield '"tags" must be an array of strings'
    if not isinstance(data.get("library_name", ""), str):
        yield '"library_name" must be a string'
    yield from _of_model_index(data.get("model-index"))


def _of_model_index(index: Any) -> Any:
    if index is None:
        return
    if not isinstance(index, list) or not index:
        yield '"model-index" must be an array'
        return
    for model in index:
        if not isinstance(model.get("name"), str) or not model["name"]:
            yield '"model-index[0].name" is required'
        for i, result in enumerate(_list(model.get("results")) or [{}]):
            place = f'"model-index[0].results[{i}]'
            if not isinstance(result.get("task", {}).get("type"), str):
                yield f'{place}.task.type" is required'
            for key in ("type", "name"):
                if not isinstance(result.get("dataset", {}).get(key), str):
                    yield f'{place}.dataset.{key}" is required'
            for j, metric in enumerate(_list(result.get("metrics")) or [{}]):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    yield f'{place}.metrics[{j}]" needs type and value'
