"""How large the images are, and what makes them so."""

import json

from tests.containers.engine import Engine, run

PREFIX = "localhost/proven-digits/"
LARGEST = 8
# Run in an image that has it: the largest packages, in MB.
PACKAGES = """
import json, pathlib, sys
site = pathlib.Path(sys.prefix, "lib", "python3.11", "site-packages")
sizes = {p.name: sum(f.lstat().st_size for f in [p, *p.rglob("*")]) / 1e6 for p in site.iterdir()}
print(json.dumps(sizes))
"""


def sizes(engine: Engine) -> list[str]:
    """A line for each image of ours that is there: its size, and its packages'."""
    listed = run([*engine.engine, "images", "--format", "{{.Repository}}:{{.Tag}}"]).split()
    return [
        f"{image.removeprefix(PREFIX)}: {_size(engine, image)}{_packages(engine, image)}"
        for image in sorted({name for name in listed if name.startswith(PREFIX)})
    ]


def _size(engine: Engine, image: str) -> str:
    (found,) = json.loads(run([*engine.engine, "image", "inspect", image]))
    return f"{found['Size'] / 1e6:,.0f} MB"


def _packages(engine: Engine, image: str) -> str:
    if "proxy" in image:
        return ""
    command = [*engine.engine, "run", "--rm", "--entrypoint", "python", image, "-c", PACKAGES]
    found: dict[str, float] = json.loads(run(command))
    largest = sorted(found, key=lambda name: -found[name])[:LARGEST]
    named = ", ".join(f"{name} {found[name]:,.0f}" for name in largest)
    return f", of which packages {sum(found.values()):,.0f} MB: {named}"
