"""The commands of ``python -m loadtest capacity``: their options and their output."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from loadtest.capacity.autoscaler import Autoscaler, Step, follow
from loadtest.capacity.check import check
from loadtest.capacity.measure import Workload, measure
from loadtest.capacity.plan import Demand, plan, plan_table
from loadtest.capacity.points import load_points
from loadtest.capacity.simulation import (
    LOST,
    POLICIES,
    REFUSED,
    Loss,
    Outcome,
    poisson_arrivals,
    simulate,
)
from loadtest.scenarios import ENDPOINTS

INVALID = 3
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# HAProxy's settings in service/deploy: a health check every 300 ms with a timeout of 1 s, and a
# connect timeout of 1 s.
DETECT_S, CONNECT_S = 1.3, 1.0
TOLD_EVERY_S = 15.0


def add_capacity(commands: Commands) -> None:
    """Declare ``capacity`` and the commands below it."""
    capacity = commands.add_parser(
        "capacity", help="compute and simulate how many replicas a load needs"
    )
    below = capacity.add_subparsers(required=True, metavar="COMMAND")
    _add_measure(below)
    _add_plan(below)
    _add_simulate(below)
    _add_scale(below)
    _add_check(below)


def _add_measure(commands: Commands) -> None:
    parser = commands.add_parser("measure", help="start one replica and measure its points")
    parser.set_defaults(command=_measure)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file for the measured points")
    parser.add_argument("--endpoint", choices=ENDPOINTS, default="infer/raw")
    parser.add_argument("--samples-per-request", type=int, default=1)
    parser.add_argument(
        "--requests", type=int, default=1000, help="number of requests of each kind"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=50,
        help="requests/s while the path to the replica is measured",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sweep", type=Path, help="JSON file of `loadtest sweep`, for the rate at the SLO"
    )
    parser.add_argument(
        "--no-proxy",
        action="store_true",
        help="measure without HAProxy; its cost is then unknown",
    )


def _add_plan(commands: Commands) -> None:
    parser = commands.add_parser(
        "plan", help="compute replicas and nodes for a load, and what saturates first"
    )
    parser.set_defaults(command=_plan)
    parser.add_argument("points", type=Path, help="file that `measure` wrote")
    parser.add_argument("--rate", type=float, required=True, help="peak requests/s")
    parser.add_argument(
        "--slo-ms", type=float, required=True, help="latency bound for 99%% of the requests"
    )
    parser.add_argument(
        "--node-cores", type=float, required=True, help="cores of a node that replicas may use"
    )
    parser.add_argument("--node-memory-mib", type=float, required=True)
    parser.add_argument(
        "--lost-nodes", type=int, default=1, help="nodes that may be lost; default: %(default)s"
    )
    parser.add_argument(
        "--link-mbit", type=float, required=True, help="network bandwidth of a node in Mbit/s"
    )
    parser.add_argument("--proxies", type=int, required=True)
    parser.add_argument(
        "--proxy-link-mbit",
        type=float,
        required=True,
        help="network bandwidth of a proxy in Mbit/s",
    )
    parser.add_argument("--json", type=Path, help="also write the plan to this file")


def _add_simulate(commands: Commands) -> None:
    parser = commands.add_parser(
        "simulate", help="simulate the latencies of many replicas, request by request"
    )
    parser.set_defaults(command=_simulate)
    parser.add_argument("points", type=Path, help="file that `measure` wrote")
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="total requests/s")
    parser.add_argument("--seconds", type=float, required=True, help="seconds to simulate")
    parser.add_argument("--policy", choices=POLICIES, help="the proxies' policy; default: all")
    parser.add_argument(
        "--proxies", type=int, default=1, help="number of proxies; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--lose", type=int, default=0, metavar="REPLICAS", help="replicas lost at the same time"
    )
    parser.add_argument(
        "--lose-at", type=float, metavar="SECONDS", help="time of the loss; default: halfway"
    )
    parser.add_argument("--detect", type=float, default=DETECT_S, metavar="SECONDS")
    parser.add_argument("--connect", type=float, default=CONNECT_S, metavar="SECONDS")


def _add_scale(commands: Commands) -> None:
    parser = commands.add_parser(
        "scale", help="simulate the autoscaler after a step of the load (fluid model)"
    )
    parser.set_defaults(command=_scale)
    parser.add_argument("points", type=Path, help="file that `measure` wrote")
    parser.add_argument("--replicas", type=int, required=True, help="initial number of replicas")
    parser.add_argument("--most", type=int, required=True, help="maximum number of replicas")
    parser.add_argument("--rate", type=float, required=True, help="requests/s before the step")
    parser.add_argument(
        "--factor", type=float, required=True, help="factor by which the step raises the rate"
    )
    parser.add_argument("--seconds", type=float, required=True, help="seconds to simulate")


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser(
        "check", help="compare the simulation with two real replicas behind HAProxy"
    )
    parser.set_defaults(command=_check)
    parser.add_argument(
        "points", type=Path, help="file that `measure` wrote on this machine just before"
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, help="bundle with which they were measured"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.4])
    parser.add_argument("--seconds", type=float, default=20, help="seconds at each share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the ratios to this file")


def _measure(arguments: argparse.Namespace) -> int:
    workload = Workload(
        bundle=arguments.bundle,
        endpoint=arguments.endpoint,
        samples_per_request=arguments.samples_per_request,
        count=arguments.requests,
        rate_per_s=arguments.rate,
        seed=arguments.seed,
        with_proxy=not arguments.no_proxy,
    )
    points = measure(workload, arguments.sweep)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(points.model_dump_json(indent=2) + "\n")
    print(f"points: {arguments.out}")
    if points.at_slo is None:
        print("no rate at an SLO, which `plan` needs: pass a sweep's JSON file with --sweep")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    points = load_points(arguments.points)
    demand = Demand(
        rate_per_s=arguments.rate,
        slo_ms=arguments.slo_ms,
        node_cores=arguments.node_cores,
        node_memory_mib=arguments.node_memory_mib,
        lost_nodes=arguments.lost_nodes,
        link_mbit_per_s=arguments.link_mbit,
        proxies=arguments.proxies,
        proxy_link_mbit_per_s=arguments.proxy_link_mbit,
    )
    found = plan(points, demand)
    print(plan_table(points, demand, found), end="")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 1 if found.overused else 0


def _simulate(arguments: argparse.Namespace) -> int:
    points = load_points(arguments.points)
    lose_at = arguments.seconds / 2 if arguments.lose_at is None else arguments.lose_at
    losses = [Loss(lose_at, arguments.lose, arguments.detect, arguments.connect)]
    arrived_s = poisson_arrivals(arguments.rate, arguments.seconds, arguments.seed)
    for policy in [arguments.policy] if arguments.policy else POLICIES:
        outcome = simulate(
            points,
            arrived_s,
            replicas=arguments.replicas,
            policy=policy,
            seed=arguments.seed,
            proxies=arguments.proxies,
            losses=losses if arguments.lose else (),
        )
        print(f"{policy}, {arguments.replicas} replicas: {_words(outcome)}")
        if arguments.lose:
            _say_around(outcome, lose_at, lose_at + arguments.detect + arguments.connect)
    return 0


def _words(outcome: Outcome) -> str:
    return (
        f"{len(outcome.fate):,} requests, {outcome.count(REFUSED):,} refused, "
        f"{outcome.count(LOST):,} lost; p50 {outcome.percentile_ms(50):.2f} ms, p99 "
        f"{outcome.percentile_ms(99):.2f} ms, cores busy {outcome.busy_share:.0%}, "
        f"{outcome.batch_requests:.1f} requests per batch"
    )


def _say_around(outcome: Outcome, lost_s: float, settled_s: float) -> None:
    for words, since_s, until_s in (
        ("before the loss", 0.0, lost_s),
        ("until it was detected", lost_s, settled_s),
        ("afterwards", settled_s, float("inf")),
    ):
        print(f"  p99 {words}: {outcome.percentile_ms(99, since_s, until_s):.2f} ms")


def _scale(arguments: argparse.Namespace) -> int:
    points = load_points(arguments.points)
    autoscaler = Autoscaler(least=arguments.replicas, most=arguments.most, start_s=points.start_s)
    after = arguments.rate * arguments.factor
    steps = follow(
        points,
        autoscaler,
        lambda at_s: after,
        replicas=arguments.replicas,
        duration_s=arguments.seconds,
    )
    print("  s  replicas ready  answered/s  refused/s  wait, s")
    for step in steps:
        if step.at_s % TOLD_EVERY_S == 0:
            print(
                f"{step.at_s:3.0f}  {step.ready:14}  {step.answered_per_s:10,.0f}  "
                f"{step.refused_per_s:9,.0f}  {step.delay_s:7.2f}"
            )
    print(reaction(steps))
    return 0


def reaction(steps: list[Step]) -> str:
    """A sentence that says when the last request was refused or waited for more than a second."""
    late = [step.at_s for step in steps if step.refused_per_s > 0 or step.delay_s > 1]
    refused = sum(step.refused_per_s for step in steps) / max(
        1e-9, sum(step.arriving_per_s for step in steps)
    )
    if late and late[-1] == steps[-1].at_s:
        return f"after {late[-1]:.0f} s, requests are still refused or wait for more than a second"
    settled = late[-1] if late else 0.0
    return (
        f"after {settled:.0f} s no request is refused or waits for more than a second; in total, "
        f"{refused:.0%} of the requests were refused"
    )


def _check(arguments: argparse.Namespace) -> int:
    found = check(
        arguments.bundle,
        load_points(arguments.points),
        shares=arguments.shares,
        duration_s=arguments.seconds,
        seed=arguments.seed,
        tell=lambda words: print(words, file=sys.stderr, flush=True),
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    return 0 if any(one.is_valid for one in found) else INVALID
