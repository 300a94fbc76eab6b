"""The comparison with the peers as Markdown and as JSON: ratios, no absolute times."""

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
from loadtest.report.tables import markdown_table

# What this service's own figures depend on, where it is installed.
OWN = ("bentoml", "onnxruntime-gpu", "onnxruntime", "numpy", "uvloop", "httptools")
SERVERS = (
    *("server", "settings", "form", "body asked, bytes", "body answered, bytes"),
    *("versions", "follows", "measured"),
)
FIGURES = (
    *("connections", "server", "requests/s over the base's", "95% interval"),
    *("p99 over p50", "95% interval"),
)
CHECKS = (
    *("server", "by wrk", "by locust", "locust over wrk", "95% interval"),
    "locust's share of a core",
    *("answers verified", "wrong", "other"),
)


def markdown(found: Comparison) -> str:
    """Its head and three tables: the servers, their figures, the cross-check."""
    plan = found.plan
    service_cores, client_cores = cores() if plan.split else (set[int](), set[int]())
    where = "all servers and wrk share all cores"
    if client_cores:
        where = f"servers on core(s) {sorted(service_cores)}, wrk on {sorted(client_cores)}"
    opened = "a new connection for each request" if plan.new_connections else "kept connections"
    bases = " and ".join(dict.fromkeys(found.base(server).name for server in found.servers))
    head = [
        f"{machine()}; {datetime.now(UTC):%Y-%m-%d}; {where}.",
        f"One sample a request where no number is named, {plan.rounds} interleaved rounds of",
        f"{plan.seconds} s each, wrk with one thread and {opened}. Ratios are geometric means of",
        f"the rounds, to {bases} in the same round (above 1: more requests a second than it), with",
        "95% bootstrap intervals of the rounds.",
    ]
    checked = [
        f"At {plan.checked_at} connections locust asked for all golden samples and verified every",
        "answer. It takes more of a core than wrk does, and as much of each server's time where",
        "cores are shared: its ratios are near wrk's as long as it takes little of a core. Where",
        "it takes a whole one, it has measured itself.",
    ]
    parts = [
        "\n".join(head),
        markdown_table(SERVERS, list(_server_rows(found))),
        markdown_table(FIGURES, list(_figure_rows(found))),
        "\n".join(checked),
        markdown_table(CHECKS, list(_check_rows(found))),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(found: Comparison) -> dict[str, Any]:
    """All that the tables are made of, round by round, and every package of every environment."""
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


def ratios(server: Server, base: Server, count: int) -> list[tuple[float, float]]:
    """Requests a second of both in each round; empty unless both have all rounds."""
    ours, theirs = base.measured.get(count, []), server.measured.get(count, [])
    if len(ours) != len(theirs):
        return []
    return [
        (own.requests_per_s, other.requests_per_s) for own, other in zip(theirs, ours, strict=True)
    ]


def spreads(server: Server, count: int) -> list[tuple[float, float]]:
    """The p99 and the p50 of each round."""
    return [(measured.p99_ms, measured.p50_ms) for measured in server.measured.get(count, [])]


def _described(found: Comparison, server: Server) -> dict[str, Any]:
    base, rows = found.base(server), []
    for count in server.measured:
        pairs = ratios(server, base, count)
        if pairs:
            spread = spreads(server, count)
            rows.append(
                {
                    "connections": count,
                    "ratios": [own / other for own, other in pairs],
                    "ratio": ratio_interval(pairs),
                    "p99_over_p50_of_rounds": [p99 / p50 for p99, p50 in spread],
                    "p99_over_p50": ratio_interval(spread),
                }
            )
    peer, asked = server.peer, server.expectations
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
        "figures": rows,
        "check": _check(server, base, found.plan.checked_at),
    }


def _check(server: Server, base: Server, count: int) -> dict[str, Any] | None:
    by_wrk = server.measured.get(count, [])
    rates, ours = ([_rate(t) for t in s.by_locust] for s in (server, base))
    if not rates or {len(by_wrk), len(ours)} != {len(rates)} or min(*rates, *ours) <= 0:
        return None
    verified, wrong, other = _judged(server)
    return {
        "connections": count,
        "ratio_by_locust": ratio_interval(list(zip(rates, ours, strict=True))),
        "locust_over_wrk": ratio_interval(
            [(rate, m.requests_per_s) for rate, m in zip(rates, by_wrk, strict=True)]
        ),
        "locust_cpu_share": median(tally.cpu_share for tally in server.by_locust),
        "answers_verified": verified,
        "wrong": wrong,
        "other": dict(other),
    }


def _rate(tally: Tally) -> float:
    return tally.in_window / tally.window_s


def _judged(server: Server) -> tuple[int, int, Counter[str]]:
    """Right answers, wrong ones, and what was no answer, as locust counted them."""
    other: Counter[str] = Counter()
    for tally in server.by_locust:
        other.update(tally.errors)
    right = sum(tally.in_window for tally in server.by_locust)
    return right, sum(tally.wrong_answers for tally in server.by_locust), other


def _server_rows(found: Comparison) -> Iterator[list[str]]:
    for server in found.servers:
        peer, asked = server.peer, server.expectations
        yield [
            *(server.name, server.settings, server.form),
            *(str(len(asked.requests[0].content)) if asked else "-", str(server.answer_bytes)),
            peer.versions if peer else ", ".join(t.replace("==", " ") for t in own_versions()),
            peer.documentation if peer else "-",
            f"in part; {server.failed}" if server.failed else "yes",
        ]
    for peer, reason in found.skipped:
        what = [peer.name, peer.settings, "-", "-", "-", peer.versions, peer.documentation]
        yield [*what, f"skipped: {reason}"]


def _figure_rows(found: Comparison) -> Iterator[list[str]]:
    for count in found.plan.connections:
        for server in found.servers:
            pairs = ratios(server, found.base(server), count)
            if not pairs:
                yield [str(count), server.name, "failed", "-", "-", "-"]
            else:
                rate, spread = ratio_interval(pairs), ratio_interval(spreads(server, count))
                yield [str(count), server.name, *_cells(rate), *_cells(spread)]


def _check_rows(found: Comparison) -> Iterator[list[str]]:
    count = found.plan.checked_at
    for server in found.servers:
        if server.expectations is None:
            continue
        base = found.base(server)
        check = _check(server, base, count)
        verified, wrong, other = _judged(server)
        told = ", ".join(f"{kind}: {n}" for kind, n in other.items()) or "0"
        last = [f"{verified:,}", str(wrong), told]
        if check is None:
            yield [server.name, *"-----", *last]
        else:
            by_wrk = ratio_interval(ratios(server, base, count))[0]
            yield [
                *(server.name, f"{by_wrk:.2f} x", f"{check['ratio_by_locust'][0]:.2f} x"),
                *_cells(check["locust_over_wrk"]),
                *(f"{100 * check['locust_cpu_share']:.0f}%", *last),
            ]


def own_versions() -> list[str]:
    """This service's own packages, as far as they are installed here."""
    found = []
    for name in OWN:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _cells(interval: Interval) -> list[str]:
    estimate, low, high = interval
    return [f"{estimate:.2f} x", f"{low:.2f} to {high:.2f}"]
