"""What is done to the containers, step by step; each ends in a line of figures or a StepError."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.containers.engine import ROOT, Project, StepError, wait_ready
from tests.containers.load import CLIENTS, Count, load

DIGIT = ROOT / "tests" / "service" / "digit.png"
MODEL = "cnn"
BEFORE_S, AFTER_S = 1.0, 1.0
BACK_WITHIN_S = 120.0  # a busy machine
LOADTEST_S = 10
# Run inside: the live workers' process ids, but for those that are only waited for.
WORKERS = """
from pathlib import Path
for folder in Path("/proc").glob("[0-9]*"):
    try:
        if b"_bentoml_impl.worker.service" in (folder / "cmdline").read_bytes().split(b"\\0"):
            print(folder.name)
    except OSError:
        pass  # it has just ended
"""
INSIDE = """
import importlib.util, json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/1/status") if ":\\t" in line)
writable = [path for path in ("/", "/srv", "/bundles", "/opt/venv") if os.access(path, os.W_OK)]
there = [name for name in ("torch", "training", "onnx", "pip") if importlib.util.find_spec(name)]
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]), "writable": writable, "packages": there,
    "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
}))
"""
ANSWERED = """
import re, urllib.request
said = urllib.request.urlopen("http://127.0.0.1:3000/metrics").read().decode()
print(sum(float(n) for n in re.findall(r"^inference_requests_total{.*} (.*)$", said, re.M)))
"""


def require(met: bool, words: str) -> None:
    """Fail the step unless this is met."""
    if not met:
        raise StepError(words)


def _require_nothing_lost(count: Count) -> None:
    lost = count.lost + count.lost_at_once
    require(not (lost or count.wrong or count.statuses), f"{count}: {lost[:3]}")


def answers(project: Project) -> str:
    """The image is built, the service comes up and reads a digit."""
    project.compose("build", "service")
    project.compose("up", "--detach", "service")
    seconds = wait_ready(project.url)
    asked = urllib.request.Request(
        f"{project.url}/predict/image?model={MODEL}",
        DIGIT.read_bytes(),
        {"content-type": "image/png"},
    )
    with urllib.request.urlopen(asked) as answer:
        label = json.load(answer)["predictions"][0]["label"]
    require(label == "7", f"tests/service/digit.png is a 7, the service reads {label}")
    return f"ready {seconds:.1f} s after it was started, reads {label}"


def hardened(project: Project) -> str:
    """Inside, the process may do nothing that it need not."""
    found = json.loads(project.python(project.container("service"), INSIDE))
    expected = {"capabilities": 0, "no_new_privileges": 1, "writable": [], "packages": []}
    expected |= {"read_only": True}
    require(found.pop("uid") != 0 and found == expected, f"{found}, expected {expected}")
    return "no root, no capabilities, no new privileges, a read-only root, no torch, no pip"


def worker_killed(project: Project) -> str:
    """One of two workers is killed under load: the other answers on, and it is replaced."""
    container = project.container("service")
    before = set(project.python(container, WORKERS).split())
    require(len(before) == 2, f"{len(before)} workers, expected 2")
    with load(project.url, project.bundles / MODEL) as count:
        time.sleep(BEFORE_S)
        victim, began_s = min(before), time.monotonic()
        project.python(container, f"import os; os.kill({victim}, 9)")
        now = set[str]()
        while time.monotonic() < began_s + BACK_WITHIN_S and (len(now) < 2 or victim in now):
            time.sleep(0.1)
            now = set(project.python(container, WORKERS).split())
        seconds = time.monotonic() - began_s
        time.sleep(AFTER_S)
    require(len(now) == 2 and victim not in now, f"workers {now} after {BACK_WITHIN_S:g} s")
    require(len(count.lost) <= CLIENTS and not count.wrong and not count.statuses, str(count))
    return f"{count}; replaced after {seconds:.1f} s"


def container_killed(project: Project) -> str:
    """Its first process is killed under load: the restart policy brings it back."""
    container = project.container("service")
    with load(project.url, project.bundles / MODEL) as count:
        time.sleep(BEFORE_S)
        pid = project.state(container)["Pid"]
        project.kill(container)
        began_s = time.monotonic()
        while project.state(container)["Pid"] in (0, pid):
            require(time.monotonic() < began_s + BACK_WITHIN_S, f"not restarted: {count}")
            time.sleep(0.1)
        wait_ready(project.url)
        seconds = time.monotonic() - began_s
        time.sleep(AFTER_S)
    require(len(count.lost) <= CLIENTS and not count.wrong and not count.statuses, str(count))
    return f"{count}; ready again after {seconds:.1f} s"


def drained(project: Project) -> str:
    """It is stopped under load: what it accepted is answered."""
    container = project.container("service")
    with load(project.url, project.bundles / MODEL) as count:
        time.sleep(BEFORE_S)
        before, began_s = count.answered, time.monotonic()
        project.compose("stop", "service")
        seconds = time.monotonic() - began_s
    state = project.state(container)
    require(not state["Running"] and state["ExitCode"] == 0, f"ended with {state['ExitCode']}")
    require(count.answered > before, "nothing was answered after the stop")
    if project.relayed:
        count.unread += len(count.lost_at_once)
        count.lost_at_once.clear()
    _require_nothing_lost(count)
    return f"{count}; {count.answered - before} of them after the stop, which took {seconds:.1f} s"


def _answered(project: Project, replica: str) -> float:
    return float(project.python(replica, ANSWERED))


def _wait_for_both(project: Project, replicas: list[str], url: str) -> None:
    """Until each replica has got requests from the proxy since now."""
    before = [_answered(project, replica) for replica in replicas]
    began_s = time.monotonic()
    while time.monotonic() < began_s + BACK_WITHIN_S:
        with load(url, project.bundles / MODEL):
            time.sleep(0.5)
        now = [_answered(project, replica) for replica in replicas]
        if all(new > old for old, new in zip(before, now, strict=True)):
            return
    raise StepError(f"one of {len(replicas)} replicas gets no requests: {before} to {now}")


def scaled(project: Project) -> str:
    """Two replicas behind the proxy share the requests."""
    project.compose("build", "proxy")
    project.compose("up", "--detach", "proxy", REPLICAS="2")
    replicas = project.containers("replica")
    require(len(replicas) == 2, f"{len(replicas)} replicas, expected 2")
    for replica in replicas:
        _wait_inside(project, replica)
    wait_ready(project.proxy_url)
    _wait_for_both(project, replicas, project.proxy_url)
    before = [_answered(project, replica) for replica in replicas]
    with load(project.proxy_url, project.bundles / MODEL) as count:
        time.sleep(2 * BEFORE_S)
    shares = [_answered(project, r) - old for r, old in zip(replicas, before, strict=True)]
    _require_nothing_lost(count)
    return f"{count}; by each replica {shares[0]:.0f} and {shares[1]:.0f}"


def _wait_inside(project: Project, replica: str) -> None:
    program = "import urllib.request as u; u.urlopen('http://127.0.0.1:3000/readyz', timeout=4)"
    began_s = time.monotonic()
    while True:
        try:
            project.python(replica, program)
            return
        except RuntimeError:
            if time.monotonic() > began_s + BACK_WITHIN_S:
                raise
            time.sleep(0.2)


def replica_stopped(project: Project) -> str:
    """One of two replicas is stopped under load and started again: nobody notices."""
    replica, *_ = replicas = project.containers("replica")
    with load(project.proxy_url, project.bundles / MODEL) as count:
        time.sleep(BEFORE_S)
        project.engine("stop", "--time", "20", replica)
        time.sleep(AFTER_S)
        project.engine("start", replica)
        _wait_inside(project, replica)
        time.sleep(AFTER_S)
    _require_nothing_lost(count)
    require(not count.unread and not count.refused, str(count))
    _wait_for_both(project, replicas, project.proxy_url)
    return str(count)


def replica_killed(project: Project) -> str:
    """One of two replicas is killed under load: what it had is asked of the other."""
    replica, *_ = replicas = project.containers("replica")
    with load(project.proxy_url, project.bundles / MODEL) as count:
        time.sleep(BEFORE_S)
        pid = project.state(replica)["Pid"]
        project.kill(replica)
        began_s = time.monotonic()
        while project.state(replica)["Pid"] in (0, pid):
            require(time.monotonic() < began_s + BACK_WITHIN_S, f"not restarted: {count}")
            time.sleep(0.1)
        _wait_inside(project, replica)
        seconds = time.monotonic() - began_s
        time.sleep(AFTER_S)
    _require_nothing_lost(count)
    require(not count.unread and not count.refused, str(count))
    _wait_for_both(project, replicas, project.proxy_url)
    return f"{count}; ready again after {seconds:.1f} s"


def load_tested(project: Project) -> str:
    """Locust's master and two workers ask the replicas and verify every answer."""
    project.compose("build", "loadtest")  # the workers run the same image
    said = project.compose(
        *("up", "--no-deps", "--exit-code-from", "loadtest", "loadtest", "loadtest-worker"),
        LOADTEST_URL="http://proxy:8080",
        LOADTEST_SECONDS=str(LOADTEST_S),
        LOADTEST_WORKERS="2",
    )
    return f"{verdict(said)} in {LOADTEST_S} s by two workers"


def verdict(said: str) -> str:
    """The sum of locust's summary.

    Raises:
        StepError: There is none, or requests failed: a wrong answer counts as failed.
    """
    sums = re.findall(r"Aggregated\s+(\d+)\s+(\d+)\(", said)
    require(bool(sums), f"locust printed no sums:\n{said[-2000:]}")
    requests, failed = map(int, sums[0])
    require(requests > 0 and failed == 0, f"{requests} requests, {failed} failed:\n{said[-2000:]}")
    return f"{requests} answers verified, 0 failed"


STEPS: tuple[Callable[[Project], str], ...] = (
    answers,
    hardened,
    worker_killed,
    container_killed,
    drained,
    scaled,
    replica_stopped,
    replica_killed,
    load_tested,
)


def bundle_there(bundles: Path) -> bool:
    """Is there a bundle that can be asked?"""
    return (bundles / MODEL / "manifest.json").is_file()
