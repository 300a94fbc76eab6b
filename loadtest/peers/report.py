"""Writes the comparison with the peers as JSON and Markdown: only ratios, no absolute times."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from loadtest.generator.recorder import Tally
from loadtest.machine import cores, machine
from loadtest.measure.stats import Interval, ratio_interval
from loadtest.peers.run import Comparison, Server
from loadtest.report.formats import markdown_table

# Packages that this service's own figures depend on, if installed.
OWN = ("bentoml", "onnxruntime-gpu", "onnxruntime", "numpy", "uvloop", "httptools")
SERVERS = (
    *("server", "settings", "form", "request body, bytes", "answer body, bytes"),
    *("versions", "documentation", "measured"),
)
FIGURES = (
    *("connections", "server", "requests/s / base", "95% interval"),
    *("p99 / p50", "95% interval"),
)
CHECKS = (
    *("server", "by wrk", "by locust", "locust / wrk", "95% interval"),
    "locust's share of a core",
    *("answers verified", "wrong", "other"),
)
Record = dict[str, Any]


def as_json(found: Comparison) -> Record:
    """The data of all tables, for each round, and the packages of every environment."""
    plan = found.plan
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "cores": "split" if plan.split and cores()[1] else "shared",
        "new_connections": plan.new_connections,
        "bundle": plan.bundle.name,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "base": found.base(found.servers[0]).name,
        "servers": [_described(found, server) for server in found.servers],
        "skipped": [
            {"name": peer.name, "requirements": peer.requirements, "reason": reason}
            for peer, reason in found.skipped
        ],
    }


def markdown(found: Comparison, record: Record) -> str:
    """A Markdown report: an introduction and tables of servers, their figures and the cross-check.

    Args:
        found: The comparison.
        record: The comparison as ``as_json`` returned it.
    """
    plan = found.plan
    where = "all servers and wrk share all cores"
    if record["cores"] == "split":
        service_cores, client_cores = cores()
        where = f"servers on core(s) {sorted(service_cores)}, wrk on {sorted(client_cores)}"
    opened = (
        "a new connection for each request" if plan.new_connections else "persistent connections"
    )
    bases = " and ".join(dict.fromkeys(server["base"] for server in record["servers"]))
    head = [
        f"{record['machine']}; {record['date']}; {where}.",
        f"One sample per request unless the name says otherwise; {plan.rounds} interleaved rounds",
        f"of {plan.seconds} s each; wrk with one thread and {opened}. Ratios are geometric means",
        f"over the rounds, relative to {bases} in the same round (above 1: more requests per",
        "second), with 95% bootstrap intervals over the rounds.",
    ]
    checked = [
        f"At {plan.checked_at} connections, locust also sent all golden samples and verified every",
        "answer. It needs more CPU time than wrk, and takes it from the servers if they share its",
        "cores: its ratios are close to wrk's only while it needs a small part of a core. Where it",
        "needs a whole core, locust itself was the bottleneck.",
    ]
    parts = [
        "\n".join(head),
        markdown_table(SERVERS, list(_server_rows(found, record))),
        markdown_table(FIGURES, list(_figure_rows(record, plan.connections))),
        "\n".join(checked),
        markdown_table(CHECKS, list(_check_rows(record, plan.checked_at))),
    ]
    return "\n\n".join(parts) + "\n"


def _described(found: Comparison, server: Server) -> Record:
    base, peer, asked = found.base(server), server.peer, server.expectations
    return {
        "name": server.name,
        "settings": server.settings,
        "form": server.form,
        "samples": server.samples,
        "base": base.name,
        "request_body_bytes": len(asked.requests[0].content) if asked else None,
        "answer_body_bytes": server.answer_bytes,
        "documentation": peer.documentation if peer else None,
        "requirements": peer.requirements if peer else own_versions(),
        "packages": server.packages,
        "failed": server.failed or None,
        "figures": [f for count in server.measured if (f := _figures(server, base, count))],
        "check": _check(server, base, found.plan.checked_at),
    }


def _figures(server: Server, base: Server, count: int) -> Record | None:
    """Ratios at a number of connections; None unless both servers completed all rounds."""
    ours, theirs = base.measured.get(count, []), server.measured[count]
    if len(ours) != len(theirs):
        return None
    pairs = [(a.requests_per_s, b.requests_per_s) for a, b in zip(theirs, ours, strict=True)]
    spread = [(measured.p99_ms, measured.p50_ms) for measured in theirs]
    return {
        "connections": count,
        "ratios": [own / other for own, other in pairs],
        "ratio": ratio_interval(pairs),
        "p99_over_p50_of_rounds": [p99 / p50 for p99, p50 in spread],
        "p99_over_p50": ratio_interval(spread),
    }


def _check(server: Server, base: Server, count: int) -> Record | None:
    """Locust's counts, with ratios if both servers completed all rounds; None: not measured."""
    if server.expectations is None:
        return None
    by_wrk = server.measured.get(count, [])
    rates, ours = ([_rate(t) for t in s.by_locust] for s in (server, base))
    errors = sum((Counter(tally.errors) for tally in server.by_locust), Counter[str]())
    counted: Record = {
        "connections": count,
        "answers_verified": sum(tally.in_window for tally in server.by_locust),
        "wrong": sum(tally.wrong_answers for tally in server.by_locust),
        "other": dict(errors),
    }
    if not rates or {len(by_wrk), len(ours)} != {len(rates)} or min(*rates, *ours) <= 0:
        return counted
    compared = [(rate, m.requests_per_s) for rate, m in zip(rates, by_wrk, strict=True)]
    return counted | {
        "ratio_by_locust": ratio_interval(list(zip(rates, ours, strict=True))),
        "locust_over_wrk": ratio_interval(compared),
        "locust_cpu_share": median(tally.cpu_share for tally in server.by_locust),
    }


def _rate(tally: Tally) -> float:
    return tally.in_window / tally.window_s


def _server_rows(found: Comparison, record: Record) -> Iterator[list[str]]:
    for server in record["servers"]:
        yield [
            *(server["name"], server["settings"], server["form"]),
            *(str(server["request_body_bytes"] or "-"), str(server["answer_body_bytes"])),
            ", ".join(text.replace("==", " ") for text in server["requirements"]),
            server["documentation"] or "-",
            f"partly; {server['failed']}" if server["failed"] else "yes",
        ]
    for peer, reason in found.skipped:
        what = [peer.name, peer.settings, "-", "-", "-", peer.versions, peer.documentation]
        yield [*what, f"skipped: {reason}"]


def _figure_rows(record: Record, connections: tuple[int, ...]) -> Iterator[list[str]]:
    for count in connections:
        for server in record["servers"]:
            figures = _at(server, count)
            if figures is None:
                yield [str(count), server["name"], "failed", "-", "-", "-"]
            else:
                cells = [*_cells(figures["ratio"]), *_cells(figures["p99_over_p50"])]
                yield [str(count), server["name"], *cells]


def _check_rows(record: Record, count: int) -> Iterator[list[str]]:
    for server in record["servers"]:
        check = server["check"]
        if check is None:
            continue
        told = ", ".join(f"{kind}: {n}" for kind, n in check["other"].items()) or "0"
        last = [f"{check['answers_verified']:,}", str(check["wrong"]), told]
        figures = _at(server, count)
        if figures is None or "ratio_by_locust" not in check:
            yield [server["name"], *"-----", *last]
        else:
            yield [
                *(server["name"], _cells(figures["ratio"])[0]),
                *(_cells(check["ratio_by_locust"])[0], *_cells(check["locust_over_wrk"])),
                *(f"{100 * check['locust_cpu_share']:.0f}%", *last),
            ]


def _at(server: Record, count: int) -> Record | None:
    """The figures at a number of connections."""
    return next((f for f in server["figures"] if f["connections"] == count), None)


def own_versions() -> list[str]:
    """The versions of this service's own packages that are installed here."""
    found = []
    for name in OWN:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _cells(interval: Interval) -> list[str]:
    return [f"{interval.estimate:.2f} x", f"{interval.low:.2f} to {interval.high:.2f}"]
