"""A plan keeps the SLO when nodes are lost, names bottlenecks, and needs measured points."""

import json
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.capacity.plan import Demand, Plan, plan, plan_table
from loadtest.capacity.points import PointsError, fit, load_points, quantiles
from tests.loadtest.capacity_points import MADE, made_points

DEMAND = Demand(
    rate_per_s=1000,
    slo_ms=20,
    node_cores=4,
    node_memory_mib=4096,
    lost_nodes=1,
    link_mbit_per_s=1000,
    proxies=2,
    proxy_link_mbit_per_s=1000,
)


def _changed(**changes: float) -> Demand:
    return Demand(**{**DEMAND.__dict__, **changes})


def test_the_replicas_that_are_needed_are_left_when_a_node_is_lost() -> None:
    """At 1,000/s and 100/s per replica, four nodes with 14 replicas keep ten after a loss."""
    found = plan(made_points(), DEMAND)
    assert (found.needed, found.per_node, found.nodes) == (10, 4, 4)
    assert found.replicas == 14  # 4, 4, 3, 3: without one of the fuller nodes ten are left
    assert found.memory_mib == 14 * 300


@pytest.mark.parametrize("rate", [1, 99, 100, 101, 250, 999, 5000])
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("cores", [1, 3, 16])
def test_no_loss_leaves_too_few_and_no_node_is_overfull(rate: int, lost: int, cores: int) -> None:
    """Enough replicas are left whichever nodes are lost; one replica less would not do."""
    found = plan(
        made_points(),
        _changed(rate_per_s=rate, lost_nodes=lost, node_cores=cores, node_memory_mib=1e6),
    )

    def left(replicas: int) -> int:
        on_nodes = sorted(
            replicas // found.nodes + (n < replicas % found.nodes) for n in range(found.nodes)
        )
        assert on_nodes[-1] <= found.per_node
        return sum(on_nodes[: found.nodes - lost])

    assert left(found.replicas) >= found.needed
    assert left(found.replicas - 1) < found.needed
    assert found.needed == -(-rate // 100)


def test_memory_bounds_the_replicas_of_a_node_too() -> None:
    """Two replicas of 300 MiB fit into 700 MiB, however many cores there are."""
    assert plan(made_points(), _changed(node_memory_mib=700)).per_node == 2


def _ends(found: Plan) -> dict[str, float | None]:
    return {resource.name: resource.ends_at_per_s for resource in found.resources}


def test_each_resource_ends_where_arithmetic_says() -> None:
    """Limits are those of ten replicas and three nodes, sorted by which saturates first."""
    points = made_points(request_ms=0.25, proxy_ms=0.1)
    ends = _ends(plan(points, DEMAND))
    assert ends == pytest.approx(
        {
            "latency: 20 ms for 99%": 1000,
            "replicas' cores, with full batches": 10 / 0.00125,
            "replicas' cores, engine only": 10 / 0.001,
            "replicas' cores, HTTP and parsing only": 10 / 0.00025,
            "nodes' network": 3 * 1e9 / 8000,
            "proxies' network": 2 * 1e9 / 12_000,
            "proxies' cores": 2 / 0.0001,
        }
    )
    values = [value for value in ends.values() if value is not None]
    assert values == sorted(values)


def test_another_bottleneck_is_named_first() -> None:
    """A slow link saturates before the replicas do."""
    found = plan(made_points(), _changed(link_mbit_per_s=1))
    assert [resource.name for resource in found.overused] == ["nodes' network"]
    table = plan_table(made_points(), _changed(link_mbit_per_s=1), found)
    assert "First to saturate: nodes' network. INSUFFICIENT: nodes' network." in table
    assert plan(made_points(), DEMAND).overused == []


def test_what_was_not_measured_is_not_guessed() -> None:
    """An unmeasured proxy is listed as such; without a rate at this SLO there is no plan."""
    found = plan(made_points(proxy_ms=None), DEMAND)
    assert found.resources[-1].ends_at_per_s is None
    table = plan_table(made_points(proxy_ms=None), DEMAND, found)
    assert "| proxies' cores | not measured | not measured |" in table
    with pytest.raises(PointsError, match=r"no rate at an SLO.*loadtest sweep"):
        plan(made_points(at_slo=None), DEMAND)
    with pytest.raises(PointsError, match="at an SLO of 20 ms, not 50 ms"):
        plan(made_points(), _changed(slo_ms=50))
    with pytest.raises(PointsError, match="no replica fits on a node of 4 cores and 200 MiB"):
        plan(made_points(), _changed(node_memory_mib=200))


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_missing_point_is_named_and_never_filled_in(name: str, tmp_path: Path) -> None:
    """Every field is required, including those that may be null."""
    path = tmp_path / "points.json"
    path.write_text(json.dumps({key: value for key, value in MADE.items() if key != name}))
    with pytest.raises(
        PointsError, match=f"(?s)does not contain measured points.*{name}.*capacity measure"
    ):
        load_points(path)


def test_the_command_prints_the_plan_and_refuses_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0 with a table, 1 if resources do not suffice, 2 with a reason; also as JSON."""
    path, out = tmp_path / "points.json", tmp_path / "plan.json"
    path.write_text(made_points().model_dump_json())
    command = ["capacity", "plan", str(path), "--rate", "1000", "--node-cores", "4"]
    command += ["--node-memory-mib", "4096", "--link-mbit", "1000", "--proxies", "2"]
    command += ["--proxy-link-mbit", "1000", "--json", str(out)]
    assert main([*command, "--slo-ms", "20"]) == 0
    assert "14 replicas on 4 nodes" in capsys.readouterr().out
    assert json.loads(out.read_text())["needed"] == 10
    assert main([*command, "--slo-ms", "20", "--link-mbit", "1"]) == 1
    assert "INSUFFICIENT" in capsys.readouterr().out
    assert main([*command, "--slo-ms", "50"]) == 2
    assert "not 50 ms" in capsys.readouterr().err


def test_a_fit_finds_the_line_and_no_negative_time() -> None:
    """The fit is exact on a line; a term that would be negative becomes zero."""
    assert fit({n: [0.5 + 0.25 * n] for n in (1, 8, 64)}) == pytest.approx((0.5, 0.25))
    fixed_ms, sample_ms = fit({n: [0.25 * n - 0.02] for n in (1, 8, 64)})
    assert fixed_ms == 0
    assert 0.23 < sample_ms < 0.25
    fixed_ms, sample_ms = fit({1: [2.0], 8: [1.9], 64: [1.8]})
    assert sample_ms == 0
    assert fixed_ms == pytest.approx(1.9, rel=0.02)
    with pytest.raises(PointsError, match="two batch sizes"):
        fit({1: [1.0]})


def test_quantiles_are_evenly_spaced() -> None:
    """The quantiles range from the smallest to the largest value."""
    assert quantiles([4.0, 0.0, 2.0], 5) == [0, 1, 2, 3, 4]


def test_a_full_batch_bounds_the_rate() -> None:
    """A batch of 64 samples holds two requests of 30; the rate uses its mean scattered time."""
    points = made_points(
        fixed_ms=4.0,
        samples_per_request=30,
        request_ms=3.0,
        max_batch_samples=64,
        scatter={30: [1.0], 60: [0.5, 1.5]},
    )
    assert points.batch_requests == 2
    assert points.batch_ms(1) == pytest.approx([37])
    assert points.batch_ms(2) == pytest.approx([38, 102])
    assert points.most_per_s == pytest.approx(2000 / 70)


def test_simulate_and_scale_print_what_came_of_the_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands print their results; losing too many replicas is refused."""
    path = tmp_path / "points.json"
    path.write_text(made_points(max_batch_samples=8).model_dump_json())
    command = ["capacity", "simulate", str(path), "--replicas", "3", "--rate", "900"]
    assert main([*command, "--seconds", "2", "--lose", "1", "--lose-at", "1"]) == 0
    said = capsys.readouterr().out
    assert "round-robin, 3 replicas" in said
    assert "least-loaded, 3 replicas" in said
    assert said.count("p99 before the loss") == 2
    assert main([*command, "--seconds", "2", "--lose", "3"]) == 2
    assert "the losses leave none" in capsys.readouterr().err
    command = ["capacity", "scale", str(path), "--replicas", "2", "--most", "9", "--rate", "1000"]
    assert main([*command, "--factor", "4", "--seconds", "90"]) == 0
    assert "no request is refused or waits" in capsys.readouterr().out
