"""Figures of simulated replicas: the tail over the load, a step of the load, the loss of a zone."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.capacity.autoscaler import Autoscaler, Step, follow
from loadtest.capacity.cli import CONNECT_S, DETECT_S
from loadtest.capacity.points import Floats, Points, load_points
from loadtest.capacity.simulation import (
    POLICIES,
    Loss,
    Policy,
    poisson_arrivals,
    simulate,
)
from tests.docs.pages import ROOT
from tests.pictures.palette import Palette, save_both

EXAMPLE = ROOT / "loadtest" / "capacity" / "example.json"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # of the replicas' limit
# By the number of replicas: proxies, and requests for each replica.
SIZES = {1: (1, 40_000), 10: (2, 10_000), 1000: (8, 300)}
ZONE_SECONDS, ZONE_AT_S, BIN_S = 8.0, 2.0, 0.25
REPLICAS, ZONES, PROXIES = 1000, 3, 8
STEP_REPLICAS, STEP_FACTOR, STEP_SECONDS = 100, 10.0, 180.0
DASHES = {"least-loaded": "-", "round-robin": "--"}
SEED = 1


@dataclass(frozen=True)
class Curve:
    """99th percentiles, milliseconds, at the abscissae of a picture."""

    policy: Policy
    replicas: int
    x: Floats
    p99_ms: Floats


def make_capacity(bundles: Path, out: Path) -> list[Path]:
    """Both pictures, of the example's points; needs no bundle."""
    points = load_points(EXAMPLE)
    tails = partial(draw_tails, points, simulate_tails(points))
    changes = partial(draw_changes, simulate_step(points), simulate_zone(points))
    return save_both(tails, out, "capacity") + save_both(changes, out, "capacity-changes")


def simulate_tails(points: Points) -> list[Curve]:
    """The tail over the load, for each policy and number of replicas."""
    return [
        Curve(
            policy,
            replicas,
            np.array(SHARES),
            np.array([_tail_ms(points, policy, replicas, share) for share in SHARES]),
        )
        for replicas in SIZES
        for policy in POLICIES
        if replicas > 1 or policy == "least-loaded"
    ]


def _tail_ms(points: Points, policy: Policy, replicas: int, share: float) -> float:
    proxies, each = SIZES[replicas]
    rate = share * replicas * points.most_per_s
    arrived_s = poisson_arrivals(rate, each * replicas / rate, SEED)
    found = simulate(
        points, arrived_s, replicas=replicas, policy=policy, seed=SEED, proxies=proxies
    )
    return found.percentile_ms(99, since_s=0.2 * each * replicas / rate)


def simulate_step(points: Points) -> list[Step]:
    """From a hundred replicas within their SLO to ten times their load."""
    assert points.at_slo is not None
    rate = STEP_FACTOR * STEP_REPLICAS * 0.8 * points.at_slo.requests_per_s
    autoscaler = Autoscaler(least=STEP_REPLICAS, most=REPLICAS, start_s=points.start_s)
    return follow(
        points,
        autoscaler,
        lambda at_s: rate,
        replicas=STEP_REPLICAS,
        duration_s=STEP_SECONDS,
    )


def simulate_zone(points: Points) -> list[Curve]:
    """A thousand replicas, a third of which is lost; the others could carry the load at the SLO."""
    assert points.at_slo is not None
    lost = REPLICAS // ZONES
    rate = (REPLICAS - lost) * points.at_slo.requests_per_s
    arrived_s = poisson_arrivals(rate, ZONE_SECONDS, SEED)
    loss = Loss(ZONE_AT_S, lost, DETECT_S, CONNECT_S)
    curves = []
    for policy in POLICIES:
        found = simulate(
            points,
            arrived_s,
            replicas=REPLICAS,
            policy=policy,
            seed=SEED,
            proxies=PROXIES,
            losses=[loss],
        )
        starts = np.arange(0, ZONE_SECONDS, BIN_S)
        tails = [found.percentile_ms(99, start, start + BIN_S) for start in starts]
        curves.append(Curve(policy, REPLICAS, starts - ZONE_AT_S, np.array(tails)))
    return curves


def draw_tails(points: Points, curves: list[Curve], palette: Palette) -> Figure:
    """The 99th percentile over the load."""
    assert points.at_slo is not None
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(SIZES, (palette.quiet, palette.second, palette.accent), strict=True))
    for curve in curves:
        name = f"{curve.replicas:,} replicas, {curve.policy}" if curve.replicas > 1 else "1 replica"
        axes.plot(
            100 * curve.x,
            curve.p99_ms,
            DASHES[curve.policy],
            color=colours[curve.replicas],
            label=name,
        )
    axes.axhline(points.at_slo.slo_ms, color=palette.bad_ink, linestyle=":", label="SLO")
    _finish(axes, palette)
    axes.set(xlabel="load, % of the replicas' limit (full batches)", ylabel="p99, ms")
    axes.set_title("p99 over the load (simulated, example inputs)", loc="left")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def draw_changes(steps: list[Step], zone: list[Curve], palette: Palette) -> Figure:
    """The autoscaler after a step of the load; the tail while a zone is lost."""
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    at_s = [step.at_s for step in steps]
    refused = [100 * step.refused_per_s / step.arriving_per_s for step in steps]
    left.step(at_s, [step.ready for step in steps], color=palette.accent, where="post")
    left.set(xlabel="seconds after the step", ylabel="replicas ready")
    left.yaxis.label.set_color(palette.accent)
    left.set_title("10 times the load", loc="left")
    beside = left.twinx()
    beside.plot(at_s, refused, color=palette.bad_ink, linestyle=":")
    beside.set(ylabel="requests refused, %", ylim=(0, 100))
    beside.yaxis.label.set_color(palette.bad_ink)
    for curve in zone:
        right.step(
            curve.x,
            curve.p99_ms,
            DASHES[curve.policy],
            color=palette.accent if curve.policy == "least-loaded" else palette.second,
            label=curve.policy,
            where="post",
        )
    _finish(right, palette)
    right.set(xlabel="seconds after the loss", ylabel="p99, ms")
    right.set_title("A zone of 333 of 1,000 replicas is lost", loc="left")
    right.legend(fontsize=9)
    return figure


def _finish(axes: Axes, palette: Palette) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [factor * 10.0**power for power in range(5) for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", color=palette.quiet, alpha=0.25, linewidth=0.7)
