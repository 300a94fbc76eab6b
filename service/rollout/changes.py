"""Changes of the desired state: what the commands of ``python -m service.rollout`` do."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from export.bundle.manifest import BundleError
from export.bundle.store import MANIFEST_NAME, SIGNATURE_NAME, Bundle, staged
from service.versions.decisions import find_contract_changes, is_pending
from service.versions.state import (
    Candidate,
    DesiredState,
    RolloutError,
    RolloutFolder,
    replace_file,
)


class RefusedError(RolloutError):
    """A version cannot take the role that was asked for; says why."""


def stage(folder: RolloutFolder, source: Path) -> str:
    """Copy a bundle to its place among the versions of a model, where it serves nothing yet.

    The first version of a model is its stable one. A bundle of the form without versions that lies
    in the model's folder becomes its stable version first. Of a version that is there already, the
    signature alone is replaced: it may have been signed, or signed by another key, since then.

    Returns:
        The version's name.

    Raises:
        BundleError: ``source`` is not a bundle, or is damaged.
        RolloutError: It is another model's, or the version is there with another content.
    """
    bundle = Bundle.open(source)
    manifest = bundle.manifest
    if manifest.name != folder.name:
        raise RolloutError(
            f"{source} is a bundle of the model {manifest.name}, not {folder.name}; stage it "
            "under the name of its model"
        )
    if (folder.folder / MANIFEST_NAME).is_file():
        _give_versions(folder)
    target = folder.bundle(manifest.version)
    if target.exists():
        if Bundle.open(target).manifest != manifest:
            raise RolloutError(
                f"{target} already exists with different content, and versions never change; "
                "build the bundle with another version: python -m export build ... --version NAME"
            )
        _take_signature(source, target)
    else:
        folder.folder.mkdir(parents=True, exist_ok=True)
        _copy(source, target)
    with folder.lock():
        if not folder.desired_path.exists():
            folder.write_desired(_first_state(manifest.version))
    return manifest.version


def set_candidate(
    folder: RolloutFolder,
    role: str,
    version: str,
    share: float,
    limits: dict[str, float],
    *,
    allow_contract_change: bool = False,
) -> DesiredState:
    """Ask for a canary or a shadow.

    Args:
        folder: The model's.
        role: "canary" or "shadow".
        version: One that is staged.
        share: Of the requests, above 0 to 1.
        limits: Fields of ``Limits`` to change.
        allow_contract_change: The version may have other tensors than the stable one.

    Raises:
        RefusedError: It has another contract.
        RolloutError: It is not staged, or has another role already.
    """
    other = "shadow" if role == "canary" else "canary"
    with folder.lock():
        base = _base(folder)
        _require_version(folder, base, version, allow_contract_change)
        taken: Candidate | None = getattr(base, other)
        changes: dict[str, Any] = {
            role: {"version": version, "share": share},
            "limits": base.limits.model_dump() | limits,
            "allow_contract_change": allow_contract_change,
        }
        if taken is not None and taken.version == version:
            changes[other] = None
        state = base.successor(f"{role} {version} with share {share:g}", **changes)
        folder.write_desired(state)
    return state


def promote(
    folder: RolloutFolder, version: str | None, *, allow_contract_change: bool = False
) -> DesiredState:
    """Ask for another stable version: the given one, or else the canary, or the shadow.

    Raises:
        RefusedError: It has another contract.
        RolloutError: It is not staged, is stable already, or there is no candidate.
    """
    with folder.lock():
        base = _base(folder)
        candidate = base.canary or base.shadow
        if version is None:
            if candidate is None:
                raise RolloutError(
                    f"{folder.name} has no canary and no shadow; name the version to promote: "
                    f"{', '.join(list_versions(folder))}"
                )
            version = candidate.version
        if version == base.stable:
            raise RolloutError(f"{folder.name} version {version} is already the stable one")
        was_allowed = candidate is not None and candidate.version == version
        allow = allow_contract_change or (was_allowed and base.allow_contract_change)
        _require_version(folder, base, version, allow)
        state = base.successor(
            f"promote {version}",
            stable=version,
            previous=base.stable,
            canary=None,
            shadow=None,
            allow_contract_change=allow,
        )
        folder.write_desired(state)
    return state


def roll_back(folder: RolloutFolder) -> DesiredState:
    """Ask for what was before: no candidates, or the previous stable version if there are none.

    Raises:
        RolloutError: There is neither a candidate nor a previous version.
    """
    with folder.lock():
        base = _base(folder)
        if base.canary or base.shadow:
            state = base.successor("drop the candidates", canary=None, shadow=None)
        elif base.previous is not None:
            state = base.successor(
                f"roll back to {base.previous}",
                stable=base.previous,
                previous=None,
                allow_contract_change=True,
            )
        else:
            raise RolloutError(
                f"{folder.name} has no canary, no shadow and no previous version; promote one of "
                f"the staged versions: {', '.join(list_versions(folder))}"
            )
        folder.write_desired(state)
    return state


def list_versions(folder: RolloutFolder) -> list[str]:
    """Return the versions that are staged."""
    return sorted(path.parent.name for path in folder.folder.glob(f"[!.]*/{MANIFEST_NAME}"))


def _base(folder: RolloutFolder) -> DesiredState:
    """Return the state that a change starts from: not one that was refused."""
    desired, record = folder.read_desired(), folder.read_record()
    if record is None or is_pending(desired, record):
        return desired
    return record.live.model_copy(update={"generation": desired.generation})


def _require_version(
    folder: RolloutFolder, base: DesiredState, version: str, allow_contract_change: bool
) -> None:
    if version not in list_versions(folder):
        raise RolloutError(
            f"{folder.name} has no version {version}; staged versions: "
            f"{', '.join(list_versions(folder))}; add it with: python -m service.rollout stage "
            f"{folder.name} BUNDLE"
        )
    manifests = [Bundle.open(folder.bundle(found)).manifest for found in (base.stable, version)]
    changes = find_contract_changes(*manifests)
    if changes and not allow_contract_change:
        raise RefusedError(
            f"version {version} has a different contract from version {base.stable}: "
            f"{'; '.join(changes)}; if the clients support it, use --allow-contract-change"
        )


def _first_state(version: str) -> DesiredState:
    return DesiredState(generation=1, stable=version, reason="first version", changed_s=time.time())


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; it appears at its place when it is whole and on the disk."""
    try:
        with staged(target) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
            staging.chmod(0o755)
            for path in staging.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            staging.rename(target)
    except OSError as error:
        raise BundleError(f"{source} cannot be copied to {target}: {error}") from error


def _take_signature(source: Path, target: Path) -> None:
    """Copy the signature, if the source has one; what it signs is the same manifest."""
    signature = source / SIGNATURE_NAME
    if signature.is_file():
        replace_file(target / SIGNATURE_NAME, signature.read_bytes())


def _give_versions(folder: RolloutFolder) -> None:
    """Move a bundle of the form without versions to ``NAME/VERSION``, as the stable version.

    A service that runs has read all that it needs of the bundle; it follows the roll-outs within a
    second.
    """
    bundle = Bundle.open(folder.folder)
    version = bundle.manifest.version
    if bundle.manifest.name != folder.name:
        raise RolloutError(
            f"{folder.folder} contains a bundle of {bundle.manifest.name}; rename the folder first"
        )
    parent = folder.folder.parent
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        new = RolloutFolder(staging / folder.name)
        shutil.copytree(folder.folder, new.bundle(version))
        new.write_desired(_first_state(version))
        new.folder.chmod(0o755)
        folder.folder.rename(staging / "old")
        try:
            new.folder.rename(folder.folder)
        except OSError:
            (staging / "old").rename(folder.folder)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
