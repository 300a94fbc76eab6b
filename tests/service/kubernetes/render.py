"""Renders the overlays of ``service/kubernetes`` by kubectl or by a small substitute.

The substitute reads the few fields of a kustomization that the overlays use, and refuses others.
It lets the tests run where kubectl is missing; one test compares the two.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from service.settings import ROOT

Object = dict[str, Any]
KUBERNETES = ROOT / "service" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "keda", "kserve", "cpu-init-container")
KEYS = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}


def render(folder: Path) -> list[Object]:
    """Return the objects that ``kubectl kustomize FOLDER`` prints, in any order.

    Raises:
        ValueError: The kustomization has a field that this function does not read.
    """
    return _build(folder, [])


def render_overlay(overlay: str) -> list[Object]:
    """Return the objects of an overlay."""
    return render(KUBERNETES / "overlays" / overlay)


def kubectl_render(overlay: str) -> list[Object]:
    """Return the objects that kubectl or kustomize prints for an overlay."""
    kustomize = shutil.which("kustomize")
    command = [kustomize, "build"] if kustomize else ["kubectl", "kustomize"]
    folder = str(KUBERNETES / "overlays" / overlay)
    ran = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(ran.stdout))


def has_kustomize() -> bool:
    """Whether the PATH has a binary that renders kustomizations."""
    return bool(shutil.which("kustomize") or shutil.which("kubectl"))


def find(objects: list[Object], kind: str) -> Object:
    """Return the only object of a kind.

    Raises:
        LookupError: There is none, or more than one.
    """
    found = [content for content in objects if content["kind"] == kind]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects of kind {kind}, expected one")
    return found[0]


def pod_of(objects: list[Object]) -> tuple[Object, Object]:
    """Return labels and specification of the pods that run the service."""
    kinds = {content["kind"] for content in objects}
    if "InferenceService" in kinds:
        predictor = find(objects, "InferenceService")["spec"]["predictor"]
        return predictor["labels"], predictor
    template = find(objects, "Deployment")["spec"]["template"]
    return template["metadata"]["labels"], template["spec"]


def _build(folder: Path, objects: list[Object]) -> list[Object]:
    """Add the resources of a kustomization to the objects, and apply its changes to all."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(content) - KEYS:
        raise ValueError(f"{folder}/kustomization.yaml: unexpected fields {sorted(unknown)}")
    for resource in content.get("resources", []):
        path = folder / resource
        if path.is_dir():
            objects = objects + _build(path, [])
        else:
            objects = objects + list(yaml.safe_load_all(path.read_text()))
    for component in content.get("components", []):
        objects = _build(folder / component, objects)
    for patch in content.get("patches", []):
        objects = _apply_patch(objects, patch)
    for one in objects:
        if "namespace" in content and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = content["namespace"]
    for image in content.get("images", []):
        for one in objects:
            _set_tag(one, image)
    return objects


def _apply_patch(objects: list[Object], patch: Object) -> list[Object]:
    """Delete the object that the patch names, or apply a JSON patch to those of its target."""
    steps = yaml.safe_load(patch["patch"])
    if isinstance(steps, dict):
        if steps.get("$patch") != "delete":
            raise ValueError("a strategic merge patch may only delete an object")
        kept = [one for one in objects if _identity(one) != _identity(steps)]
        if len(kept) != len(objects) - 1:
            raise ValueError(f"nothing to delete: {_identity(steps)}")
        return kept
    target = patch["target"]
    if set(target) != {"kind", "name"}:
        raise ValueError(f"a target has kind and name, not {sorted(target)}")
    return [
        jsonpatch.apply_patch(one, steps)
        if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])
        else one
        for one in objects
    ]


def _identity(content: Object) -> tuple[str, str, str, str]:
    metadata = content["metadata"]
    return content["apiVersion"], content["kind"], metadata["name"], metadata.get("namespace", "")


def _set_tag(content: Any, image: Object) -> None:
    """Replace the tag of every container's image of that name."""
    if isinstance(content, list):
        for item in content:
            _set_tag(item, image)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in ("containers", "initContainers"):
                for container in value:
                    name = container["image"].rsplit(":", 1)[0]
                    if name == image["name"]:
                        container["image"] = f"{name}:{image['newTag']}"
            else:
                _set_tag(value, image)
