"""With a real Prometheus scraping the real service, every query gives data."""

import math
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from export.bundle.golden import Golden
from loadtest.server import free_port, running_service, stop
from service.observability.metrics import FLUSH_INTERVAL_S
from tests.service.monitoring.promql import (
    MONITORING,
    alerts,
    dashboard_queries,
    metric_names,
    recorded,
)
from tests.service.rollout.made_versions import make_digits_rollout
from tests.tiny import SERVED_BUNDLES

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed (Debian and Ubuntu: apt-get install prometheus)",
)
DIGIT = (Path(__file__).parents[1] / "digit.png").read_bytes()
IMAGE = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz").inputs["images"][0]
PNG = {"content-type": "image/png"}
RAW = {"inference-header-content-length": "0"}
PATIENCE_S = 40
SCRAPED_EVERY_S = 1
VARIABLES = {"$__rate_interval": "10s", "$instance": ".*", "$model": ".*"}


class _Load:
    """Sends a mix of requests until stopped and records the statuses."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, threading.Event()
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pixels = {"images": IMAGE.tolist()}
        while not self._over.is_set():
            with httpx.Client(base_url=self._url, timeout=20) as client:  # a new connection
                for model in ("cnn", "mlp"):
                    infer = f"/v2/models/{model}/infer"
                    answers = [
                        client.post(infer, content=IMAGE.tobytes(), headers=RAW),
                        client.post("/predict", json=pixels | {"model": model}),
                        client.post(f"/predict/image?model={model}", content=DIGIT, headers=PNG),
                        client.post(infer, content=b"broken"),
                    ]
                    self.statuses += [answer.status_code for answer in answers]
            self._over.wait(0.05)

    def stop(self) -> None:
        """Stop, and wait until Prometheus has scraped the result."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join(20)
            time.sleep(FLUSH_INTERVAL_S + 2 * SCRAPED_EVERY_S)


@contextmanager
def _prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus with its configuration, but another target and a shorter interval."""
    configured = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configured["global"] = dict.fromkeys(configured["global"], f"{SCRAPED_EVERY_S}s")
    (job,) = configured["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
    shutil.copytree(MONITORING / "rules", folder / "rules")
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with httpx.Client(base_url=f"http://{address}/api/v1", timeout=20) as client:
                yield client
        finally:
            stop(process)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, _Load]]:
    """Prometheus' API, and the load on the two workers that it scrapes."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = {
        "INFERENCE_BUNDLES": str(make_digits_rollout(folder)),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_WORKERS": "2",
        "INFERENCE_GOLDEN_CHECK_S": "1",
    }
    with (
        running_service(folder / "service.log", settings=settings) as url,
        _prometheus(folder, url.removeprefix("http://")) as client,
    ):
        load = _Load(url)
        try:
            yield client, load
        finally:
            load.stop()


def _ask(client: httpx.Client, query: str) -> list[float]:
    """The current values of all series of a query.

    Raises:
        AssertionError: Prometheus rejects the query.
    """
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    response = client.get("/query", params={"query": query})
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # it has only just been started
        return []
    answer = response.json()
    assert answer["status"] == "success", f"{query}: {answer.get('error')}"
    result: list[Any] = answer["data"]["result"]
    return [float(series["value"][1]) for series in result]


def _waits_for_data(client: httpx.Client, queries: set[str]) -> set[str]:
    """The queries that still give no number after the time limit."""
    give_up_s = time.monotonic() + PATIENCE_S
    while queries and time.monotonic() < give_up_s:
        with suppress(httpx.TransportError):  # it has only just been started
            queries = {
                query for query in queries if all(math.isnan(v) for v in _ask(client, query))
            }
        time.sleep(0.5)
    return queries


def test_every_query_gives_data(scraped: tuple[httpx.Client, _Load]) -> None:
    """The queries of dashboard and recording rules, and each metric of an alert, have data."""
    client, _ = scraped
    of_alerts = {name for alert in alerts().values() for name in metric_names(alert["expr"])}
    queries = {*dashboard_queries(), *recorded(), *recorded().values(), *of_alerts}
    assert len(queries) > 70
    assert _waits_for_data(client, queries) == set()


def test_the_rules_are_healthy_and_no_alert_fires(scraped: tuple[httpx.Client, _Load]) -> None:
    """Every rule evaluates without error, and client errors alone fire no alert."""
    client, _ = scraped
    assert _waits_for_data(client, {"job:inference_faults:ratio_rate1h"}) == set()
    groups = client.get("/rules").json()["data"]["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(found) == {*recorded(), *alerts()}
    for name, rule in found.items():
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), name
    assert client.get("/alerts").json()["data"]["alerts"] == []


def test_the_dashboards_variables_have_values(scraped: tuple[httpx.Client, _Load]) -> None:
    """The dashboard's variables offer models and replicas."""
    client, _ = scraped
    assert _waits_for_data(client, {'inference_model_info{job="digits"}'}) == set()
    match = {"match[]": 'inference_model_info{job="digits"}'}
    assert client.get("/label/model/values", params=match).json()["data"] == ["cnn", "mlp"]
    (instance,) = client.get("/label/instance/values", params={"match[]": "up"}).json()["data"]
    assert instance.startswith("127.0.0.1:")


def test_prometheus_counts_what_was_asked(scraped: tuple[httpx.Client, _Load]) -> None:
    """Each answer, duration, image and refusal of both workers is counted once."""
    client, load = scraped
    load.stop()
    answered, refused = load.statuses.count(200), load.statuses.count(400)
    assert answered == 3 * refused > 0
    for query, expected in {
        "sum(inference_requests_total)": answered,
        "sum(inference_samples_total)": answered,
        "sum(inference_request_duration_seconds_count)": answered,
        "sum(inference_refused_requests_total)": refused,
        'inference_refused_requests_total{kind="invalid_input"}': refused,
        "count(process_start_time_seconds)": 2,
        "sum(inference_queue_limit_samples)": 2 * 2 * 512,
    }.items():
        assert _ask(client, query) == [expected], query
