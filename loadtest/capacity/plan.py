"""Computes replicas and nodes from measured points, with headroom for losses, and bottlenecks."""

import math
from dataclasses import dataclass

import numpy as np

from loadtest.capacity.points import MS, Points, PointsError

BITS = 8
MEGA = 1e6


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The load to serve, and the machines to serve it on.

    Attributes:
        rate_per_s: Requests/s at the peak.
        slo_ms: The latency bound for 99% of the requests.
        node_cores: Cores of a node that replicas may use; ``node_memory_mib`` is their memory.
        lost_nodes: Number of nodes that may be lost while the SLO is still kept.
        link_mbit_per_s: Bandwidth of a node's network in each direction;
            ``proxy_link_mbit_per_s`` is a proxy's.
        proxies: Number of proxies that share the load; each one has a core.
    """

    rate_per_s: float
    slo_ms: float
    node_cores: float
    node_memory_mib: float
    lost_nodes: int
    link_mbit_per_s: float
    proxies: int
    proxy_link_mbit_per_s: float


@dataclass(frozen=True)
class Resource:
    """A resource that may saturate.

    Attributes:
        name: Description of the resource.
        used: The share in use at the demanded rate, with the nodes lost.
        ends_at_per_s: The rate at which it saturates. It and ``used`` are None if the resource was
            not measured.
    """

    name: str
    used: float | None
    ends_at_per_s: float | None


@dataclass(frozen=True)
class Plan:
    """The number of replicas and nodes to run.

    Attributes:
        needed: Number of replicas that carry the load at the SLO.
        per_node: Number of replicas that fit on a node.
        nodes: Number of nodes, including those that may be lost.
        replicas: Number of replicas, spread evenly over the nodes; ``needed`` are left after the
            loss.
        memory_mib: Memory of all replicas.
        resources: Resources in the order in which they saturate; unmeasured ones are last.
    """

    needed: int
    per_node: int
    nodes: int
    replicas: int
    memory_mib: float
    resources: list[Resource]

    @property
    def overused(self) -> list[Resource]:
        """The resources of which the load needs more than there is."""
        return [resource for resource in self.resources if (resource.used or 0) > 1]


def plan(points: Points, demand: Demand) -> Plan:
    """Compute the replicas and nodes for a load.

    Raises:
        PointsError: No rate at this SLO was measured, or no replica fits on a node.
    """
    at_slo = points.at_slo
    if at_slo is None:
        raise PointsError(
            "the points have no rate at an SLO, because no sweep with a valid capacity was given; "
            "run `python -m loadtest sweep` with separate cores for the generator, and pass its "
            "JSON file to `python -m loadtest capacity measure --sweep FILE`"
        )
    if at_slo.slo_ms != demand.slo_ms:
        raise PointsError(
            f"the rate was measured at an SLO of {at_slo.slo_ms:g} ms, not {demand.slo_ms:g} ms; "
            f"measure it with: python -m loadtest sweep --slo-ms {demand.slo_ms:g}"
        )
    per_node = min(
        math.floor(demand.node_cores / points.cores_per_replica),
        math.floor(demand.node_memory_mib / points.memory_mib),
    )
    if per_node < 1:
        raise PointsError(
            f"no replica fits on a node of {demand.node_cores:g} cores and "
            f"{demand.node_memory_mib:g} MiB: a replica needs {points.cores_per_replica:g} cores "
            f"and {points.memory_mib:.0f} MiB; use larger nodes"
        )
    needed = math.ceil(demand.rate_per_s / at_slo.requests_per_s)
    nodes = math.ceil(needed / per_node) + demand.lost_nodes
    replicas = needed
    while _left(replicas, nodes, demand.lost_nodes) < needed:
        replicas += 1
    left = nodes - demand.lost_nodes
    return Plan(
        needed=needed,
        per_node=per_node,
        nodes=nodes,
        replicas=replicas,
        memory_mib=replicas * points.memory_mib,
        resources=_resources(points, demand, _left(replicas, nodes, demand.lost_nodes), left),
    )


def _left(replicas: int, nodes: int, lost: int) -> int:
    """The number of replicas left when the fullest nodes of an even spread are lost."""
    fewest, fuller = divmod(replicas, nodes)
    return replicas - lost * fewest - min(lost, fuller)


def _resources(points: Points, demand: Demand, replicas: int, nodes: int) -> list[Resource]:
    """The use of each resource under the load, with only so many replicas and nodes left."""
    at_slo = points.at_slo
    assert at_slo is not None  # noqa: S101 - checked by plan
    engine_ms = float(np.mean(points.batch_ms(points.batch_requests))) / points.batch_requests
    sent = max(points.request_bytes, points.answer_bytes) * BITS / MEGA  # busier direction
    both = (points.request_bytes + points.answer_bytes) * BITS / MEGA
    limits = {
        f"latency: {at_slo.slo_ms:g} ms for 99%": replicas * at_slo.requests_per_s,
        "replicas' cores, with full batches": replicas * points.most_per_s,
        "replicas' cores, engine only": replicas * MS / (engine_ms - points.request_ms),
        "nodes' network": nodes * demand.link_mbit_per_s / sent,
        # A proxy receives requests and answers, and sends both on.
        "proxies' network": demand.proxies * demand.proxy_link_mbit_per_s / both,
    }
    if points.request_ms:
        limits["replicas' cores, HTTP and parsing only"] = replicas * MS / points.request_ms
    if points.proxy_ms is not None:
        limits["proxies' cores"] = demand.proxies * MS / points.proxy_ms
    ordered = sorted(limits.items(), key=lambda item: item[1])
    found = [Resource(name, demand.rate_per_s / limit, limit) for name, limit in ordered]
    if points.proxy_ms is None:
        found.append(Resource("proxies' cores", None, None))
    return found


def plan_table(points: Points, demand: Demand, found: Plan) -> str:
    """The plan as a Markdown table with an introduction."""
    lines = [
        f"{demand.rate_per_s:,.0f} requests/s of {points.model}, 99% within {demand.slo_ms:g} ms: "
        f"{found.replicas} replicas on {found.nodes} nodes "
        f"({found.per_node} fit on a node; {found.memory_mib:,.0f} MiB in total).",
        f"{found.needed} are needed, and as many are left after the loss of {demand.lost_nodes} "
        f"node(s). A new replica takes {points.start_s:g} s to start.",
        "",
        "| resource | utilization after the loss | saturates at |",
        "|---|---|---|",
    ]
    for resource in found.resources:
        if resource.used is None or resource.ends_at_per_s is None:
            lines.append(f"| {resource.name} | not measured | not measured |")
        else:
            share, ends = resource.used, resource.ends_at_per_s
            lines.append(f"| {resource.name} | {share:.0%} | {ends:,.0f} requests/s |")
    first = found.resources[0].name
    over = ", ".join(resource.name for resource in found.overused)
    lines += ["", f"First to saturate: {first}." + (f" INSUFFICIENT: {over}." if over else "")]
    return "\n".join(lines) + "\n"
