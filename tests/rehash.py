"""A fault that no hash reveals: the manifest is made to agree with a changed file."""

import hashlib
import json
from pathlib import Path


def rehash(bundle: Path, name: str) -> None:
    """Write the changed file's hash and size into the manifest, as a faulty build would have."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    content = (bundle / name).read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry["size_bytes"] = len(content)
    path.write_text(json.dumps(manifest))
