"""A container engine and its compose command, found on this machine, and a project brought up."""

import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.server import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "digits-compose-test"
PROFILES = ("scale", "loadtest")
COMMAND_TIMEOUT_S = 1800.0  # an image of the first build takes minutes
READY_TIMEOUT_S = 120.0
COMPOSE_VARIABLE, ENGINE_VARIABLE = "COMPOSE", "ENGINE"


class NoEngineError(RuntimeError):
    """No container engine with compose is to be had here; says what was tried."""


class CommandError(RuntimeError):
    """A command of the engine failed; holds the end of what it said."""


class StepError(AssertionError):
    """What a container does is not what it must do."""


@dataclass(frozen=True)
class Engine:
    """How containers are run here.

    Attributes:
        compose: The compose command.
        engine: The engine's own: docker or podman.
    """

    compose: tuple[str, ...]
    engine: tuple[str, ...]


def find_engine(environment: Mapping[str, str]) -> Engine:
    """COMPOSE (and ENGINE) of the environment if set, else docker, else podman.

    Raises:
        NoEngineError: None of them answers.
    """
    given = shlex.split(environment.get(COMPOSE_VARIABLE, ""))
    if given:
        named = environment.get(ENGINE_VARIABLE) or ("docker" if "docker" in given else "podman")
        candidates = [Engine(tuple(given), (named,))]
    else:
        candidates = [
            Engine(("docker", "compose"), ("docker",)),
            Engine(("podman-compose",), ("podman",)),
        ]
    path = environment.get("PATH")
    tried = []
    for found in candidates:
        if all(_answers(command, path) for command in ((*found.engine, "info"), found.compose)):
            return found
        tried.append(f"`{shlex.join(found.compose)}` with `{shlex.join(found.engine)}`")
    raise NoEngineError(
        f"no container engine answers here: tried {' and '.join(tried)}. Install Docker, or podman "
        f"with podman-compose, or name the commands in {COMPOSE_VARIABLE} and {ENGINE_VARIABLE}"
    )


def _answers(command: Sequence[str], path: str | None) -> bool:
    program = shutil.which(command[0], path=path)
    if program is None:
        return False
    asked = [program, *command[1:], *([] if command[-1] == "info" else ["version"])]
    return subprocess.run(asked, capture_output=True).returncode == 0


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command printed.

    Raises:
        CommandError: It failed.
    """
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMMAND_TIMEOUT_S,
    )
    if ran.returncode != 0:
        said = "\n".join((ran.stdout + ran.stderr).splitlines()[-30:])
        raise CommandError(f"`{shlex.join(command)}` ended with {ran.returncode}:\n{said}")
    return ran.stdout


class Project:
    """The compose file brought up under a name of its own.

    Attributes:
        bundles: The folder that is served.
        url: Of the service; ``proxy_url`` is that of the replicas' proxy.
        relayed: Published ports are a process's, which takes connections whoever listens behind.
    """

    def __init__(self, engine: Engine, bundles: Path) -> None:
        """Choose ports; nothing is started yet."""
        self._engine, self.bundles = engine, bundles.resolve()
        self.relayed = engine.engine == ("docker",)
        service, proxy = free_port(), free_port()
        self.url, self.proxy_url = f"http://127.0.0.1:{service}", f"http://127.0.0.1:{proxy}"
        self._environment = {
            "COMPOSE_PROJECT_NAME": NAME,
            "INFERENCE_BUNDLES_FROM": str(self.bundles),
            "INFERENCE_PORT": str(service),
            "PROXY_PORT": str(proxy),
            "INFERENCE_WORKERS": "2",
        }

    def compose(self, *words: str, **settings: str) -> str:
        """Run compose with all profiles; settings are variables of the compose file."""
        profiles = [word for profile in PROFILES for word in ("--profile", profile)]
        command = [*self._engine.compose, "-p", NAME, *profiles, *words]
        return run(command, {**self._environment, **settings})

    def engine(self, *words: str) -> str:
        """Run the engine's own command."""
        return run([*self._engine.engine, *words])

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, those that ended too."""
        labels = {"project": NAME, "service": service}
        filters = [
            word
            for name, value in labels.items()
            for word in ("--filter", f"label=com.docker.compose.{name}={value}")
        ]
        return self.engine("ps", "--all", "--quiet", *filters).split()

    def container(self, service: str) -> str:
        """The id of a service's only container."""
        (found,) = self.containers(service)
        return found

    def state(self, container: str) -> dict[str, Any]:
        """What the engine knows of it: Running, Pid, ExitCode."""
        found: dict[str, Any] = json.loads(
            self.engine("inspect", "--format", "{{json .State}}", container)
        )
        return found

    def python(self, container: str, program: str) -> str:
        """What a program printed that ran inside, as the user that the service is."""
        return self.engine("exec", container, "python", "-c", program).strip()

    def kill(self, container: str) -> None:
        """End its first process by SIGKILL, as a crash would.

        The engine's own ``kill`` would count as a wish of ours, and nothing would be restarted.
        """
        pid, image = self.state(container)["Pid"], "localhost/proven-digits/service:cpu"
        helper = ["run", "--rm", "--pid=host", "--user=root", "--entrypoint=python", image]
        self.engine(*helper, "-c", f"import os; os.kill({pid}, 9)")

    def down(self) -> None:
        """Remove all that was brought up."""
        self.compose("down", "--volumes", "--timeout", "20")


def wait_ready(url: str, path: str = "/readyz") -> float:
    """Seconds until the URL answers 200.

    Raises:
        StepError: It did not in time.
    """
    began_s = time.monotonic()
    while time.monotonic() < began_s + READY_TIMEOUT_S:
        try:
            with urllib.request.urlopen(url + path, timeout=5):
                return time.monotonic() - began_s
        except OSError:
            time.sleep(0.05)
    raise StepError(f"{url}{path} did not answer 200 within {READY_TIMEOUT_S:g} s")
