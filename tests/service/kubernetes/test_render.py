"""The overlays can be rendered, and kubectl gives the same result as the tests' substitute."""

from pathlib import Path

import pytest

from tests.service.kubernetes.render import (
    KUBERNETES,
    OVERLAYS,
    Object,
    has_kustomize,
    kubectl_render,
    render,
    render_overlay,
)


def _by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return named


@pytest.mark.skipif(not has_kustomize(), reason="neither kustomize nor kubectl is on the PATH")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same_as_the_tests(overlay: str) -> None:
    """Every object is equal, field by field."""
    assert _by_name(render_overlay(overlay)) == _by_name(kubectl_render(overlay))


def test_every_overlay_is_tested() -> None:
    """The list of overlays is the list of folders."""
    assert {path.name for path in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)


def test_every_manifest_is_used() -> None:
    """Every YAML file is named by the kustomization beside it."""
    for file in KUBERNETES.rglob("*.yaml"):
        named = (file.parent / "kustomization.yaml").read_text()
        assert file.name == "kustomization.yaml" or file.name in named, file


def test_a_field_that_is_not_read_is_refused(tmp_path: Path) -> None:
    """A kustomization with a field that the tests would ignore is an error."""
    (tmp_path / "kustomization.yaml").write_text("nameSuffix: -two\n")
    with pytest.raises(ValueError, match="nameSuffix"):
        render(tmp_path)
