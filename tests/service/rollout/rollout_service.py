"""A running service with versions of the tiny classifier, and clients that check each answer."""

import contextlib
import io
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from service.rollout.__main__ import main
from service.rollout.status import read_status
from service.versions.state import RolloutFolder
from tests.service.rollout.made_versions import NAME, samples, weights
from tests.service.wire import PATIENCE_S, running_services

# A worker that ends is restarted within this time, more than once for some versions.
WITHIN_S = 40.0


def run_command(*arguments: str) -> None:
    """Run a command of the roll-out.

    Raises:
        RuntimeError: The command did not exit with 0.
    """
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(arguments)
    if status != 0:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {status}: {said.getvalue()}")


@dataclass
class RolloutService:
    """A running service and its bundles folder."""

    url: str
    bundles: Path

    @property
    def folder(self) -> RolloutFolder:
        """The roll-out files of the model."""
        return RolloutFolder(self.bundles / NAME)

    def run(self, *arguments: str) -> int:
        """Run a roll-out command and return its exit code."""
        return main([*arguments, "--bundles", str(self.bundles)])

    def require(self, *arguments: str) -> None:
        """Run a roll-out command, which must succeed, in its own process."""
        command = [sys.executable, "-m", "service.rollout", *arguments, "--bundles"]
        subprocess.run([*command, str(self.bundles)], check=True, stdout=subprocess.DEVNULL)

    def is_back(self) -> bool:
        """Whether no worker has a candidate any more."""
        live = self.status()["live"]
        return live["canary"] is None and live["shadow"] is None and self.is_settled()

    def status(self) -> dict[str, Any]:
        """The output of ``status --json``."""
        return read_status(self.folder)

    def stage(self, *bundles: Path) -> None:
        """Stage versions."""
        for bundle in bundles:
            assert self.run("stage", NAME, str(bundle)) == 0

    def ask(
        self, values: Any, *, version: str | None = None, request_id: str | None = None
    ) -> httpx.Response:
        """Send one request over a new connection."""
        path = f"/v2/models/{NAME}" + (f"/versions/{version}" if version else "")
        headers = {"x-request-id": request_id} if request_id else {}
        tensor = {"name": "x", "shape": list(values.shape), "datatype": "FP32"}
        body = {"inputs": [tensor | {"data": values.tolist()}]}
        url = f"{self.url}{path}/infer"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S)

    def is_settled(self) -> bool:
        """Whether all workers run and serve one generation that is not pending."""
        status = self.status()
        generations = {worker["active"] for worker in status["workers"]}
        live = status["live"]["generation"] if status["live"] else 0
        is_whole = not status["missing_workers"] and generations == {live}
        return bool(is_whole and status["outcome"] != "pending")


def logits_of(answer: httpx.Response) -> Any:
    """The logits of an answer in JSON, float64 [N, 3]."""
    (tensor,) = (out for out in answer.json()["outputs"] if out["name"] == "logits")
    return np.array(tensor["data"]).reshape(tensor["shape"])


def is_right(answer: httpx.Response, values: Any, seeds: dict[str, int]) -> bool:
    """Whether an answer matches the version that it names."""
    seed = seeds.get(answer.headers["x-model-version"])
    if seed is None or answer.json()["model_version"] != answer.headers["x-model-version"]:
        return False
    expected = values @ weights(seed)
    found = logits_of(answer)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < 1e-4)


@dataclass
class Load:
    """Results of clients that sent requests.

    Attributes:
        answers: How many right answers each version gave.
        mistakes: Descriptions of the mistakes.
    """

    answers: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def ask(self, client: httpx.Client, url: str, sent: Any, name: str) -> httpx.Response | None:
        """Send one request; without an answer, note a mistake and return None."""
        headers = {"inference-header-content-length": "0", "x-request-id": name}
        try:
            answer = client.post(url, content=sent.tobytes(), headers=headers)
        except httpx.HTTPError as error:
            self.mistakes.append(repr(error))
            return None
        if answer.status_code != 200:
            self.mistakes.append(f"{answer.status_code}: {answer.text[:200]}")
            return None
        return answer

    def check(self, answer: httpx.Response, sent: Any, seeds: dict[str, int]) -> None:
        """Count an answer, and note a mistake if it does not match the version that it names."""
        length = int(answer.headers.get("inference-header-content-length", 0))
        found = np.frombuffer(answer.content[length:], "<f4") if length else logits_of(answer)
        version = answer.headers["x-model-version"]
        right = sent @ weights(seeds.get(version, -1 % 2**32))
        scale = max(1.0, float(np.abs(right).max()))
        if np.abs(found.reshape(right.shape) - right).max() > 1e-4 * scale:
            self.mistakes.append(f"wrong answer of version {version}")
        self.answers[version] += 1


@contextmanager
def asked(
    service: RolloutService,
    seeds: dict[str, int],
    *,
    clients: int = 2,
    unlucky: float | None = None,
) -> Iterator[Load]:
    """Send requests from several clients while a block runs, and check each answer.

    Args:
        service: The service.
        seeds: The seed of each version's weights.
        clients: Number of clients, each with one connection.
        unlucky: A number that every hundredth request contains.
    """
    load, stop = Load(), threading.Event()
    url = f"{service.url}/v2/models/{NAME}/infer"

    def ask_on(number: int) -> None:
        values, count = samples(1, seed=number), 0
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not stop.is_set():
                count += 1
                sent = values.copy()
                if unlucky is not None and count % 100 == 0:
                    sent[0, 0] = unlucky
                answer = load.ask(client, url, sent, f"{number}-{count}")
                if answer is not None:
                    load.check(answer, sent, seeds)

    threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(folder: Path, first: Path, **settings: str) -> Iterator[RolloutService]:
    """Run a service whose only model has one version."""
    folder.mkdir(exist_ok=True)
    bundles = folder / "bundles"
    assert main(["stage", NAME, str(first), "--bundles", str(bundles)]) == 0
    variables = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_WORKERS": "2", **settings}
    with running_services(folder, {"rollout": variables}) as urls:
        service = RolloutService(urls["rollout"], bundles)
        until_s = time.monotonic() + PATIENCE_S
        while not service.is_settled() and time.monotonic() < until_s:
            time.sleep(0.1)
        yield service
