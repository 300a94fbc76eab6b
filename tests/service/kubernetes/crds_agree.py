"""Compares a schema of ``crds/`` with the full definition of the custom resource.

python -m tests.service.kubernetes.crds_agree CRD_FILE KIND
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.service.kubernetes.schemas import CUSTOM, load_schema

COMPARED = ("pattern", "minLength", "minItems", "minimum", "maximum", "enum")
# Every Kubernetes object has these fields; definitions do not describe them.
TOP = ("apiVersion", "kind", "metadata")


def find_differences(reduced: dict[str, Any], full: dict[str, Any]) -> Iterator[str]:
    """Yield what the reduced schema of an object states differently from the full one.

    Args:
        reduced: A schema of ``crds/``.
        full: The ``openAPIV3Schema`` of the same version.
    """
    for name, field in reduced["properties"].items():
        if name in TOP:
            continue
        if name not in full["properties"]:
            yield f"{name}: not in the definition"
        else:
            yield from _compare(field, full["properties"][name], reduced.get("$defs", {}), name)


def _compare(
    reduced: dict[str, Any], full: dict[str, Any], shared: dict[str, Any], path: str
) -> Iterator[str]:
    if "$ref" in reduced:
        reduced = shared[reduced["$ref"].rsplit("/", 1)[1]]
    yield from _compare_limits(reduced, full, path)
    for name, field in reduced.get("properties", {}).items():
        if name in full.get("properties", {}):
            yield from _compare(field, full["properties"][name], shared, f"{path}.{name}")
        else:
            yield f"{path}.{name}: not in the definition"
    for key in ("items", "additionalProperties"):
        if isinstance(reduced.get(key), dict):
            if isinstance(full.get(key), dict):
                yield from _compare(reduced[key], full[key], shared, f"{path}.{key}")
            else:
                yield f"{path}: {key}, which the definition has not"


def _compare_limits(reduced: dict[str, Any], full: dict[str, Any], path: str) -> Iterator[str]:
    """Compare type, required fields and limits of one value."""
    kind = ["integer", "string"] if full.get("x-kubernetes-int-or-string") else full.get("type")
    if reduced["type"] != kind:
        yield f"{path}: type {reduced['type']}, in the definition {kind}"
    for key in COMPARED:
        if reduced.get(key) != full.get(key):
            yield f"{path}: {key} {reduced.get(key)}, in the definition {full.get(key)}"
    if sorted(reduced.get("required", [])) != sorted(full.get("required", [])):
        yield f"{path}: required {reduced.get('required')}, not {full.get('required')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print each difference; the status is 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.kubernetes.crds_agree")
    parser.add_argument("file", type=Path, help="the project's own definition, as YAML")
    parser.add_argument("kind", choices=CUSTOM)
    arguments = parser.parse_args(argv)
    reduced = load_schema(arguments.kind)
    version = reduced["properties"]["apiVersion"]["const"].rsplit("/", 1)[1]
    versions = yaml.safe_load(arguments.file.read_text())["spec"]["versions"]
    full = next(one for one in versions if one["name"] == version)["schema"]["openAPIV3Schema"]
    differences = list(find_differences(reduced, full))
    sys.stdout.writelines(f"{difference}\n" for difference in differences)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
