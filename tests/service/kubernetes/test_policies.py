"""The manifests satisfy the policies of linters and of the service itself."""

from collections.abc import Callable

import pytest

from service.settings import Settings, read_settings
from service.transport.shutdown import HANDSHAKE_GRACE_S, MOST_GRACES
from tests.containers.files import ROOT, instructions, services
from tests.service.kubernetes import policies
from tests.service.kubernetes.policies import POLICIES, Policy
from tests.service.kubernetes.render import OVERLAYS, Object, find, pod_of, render_overlay

# A closing connection is reset if its client does not read for this long (docs/serving.md).
RESET_S = 5.0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_every_policy(overlay: str, policy: Policy) -> None:
    """No object of the overlay violates the policy."""
    assert list(policy(render_overlay(overlay))) == []


def _container(objects: list[Object]) -> Object:
    container: Object = pod_of(objects)[1]["containers"][0]
    return container


def _spoil_autoscaler(objects: list[Object]) -> None:
    find(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] = "digit"


def _spoil_budget(objects: list[Object]) -> None:
    find(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] = {"app": "digits"}


FAULTS: list[tuple[Policy, Callable[[list[Object]], object]]] = [
    (policies.pin_images, lambda o: _container(o).update(image="registry.example.com/x:latest")),
    (policies.pin_images, lambda o: pod_of(o)[1]["volumes"][0]["image"].update(reference="x")),
    (policies.set_resources, lambda o: _container(o)["resources"]["limits"].pop("memory")),
    (policies.run_without_rights, lambda o: _container(o)["securityContext"].pop("capabilities")),
    (policies.run_without_rights, lambda o: pod_of(o)[1]["securityContext"].pop("runAsNonRoot")),
    (policies.run_without_rights, lambda o: pod_of(o)[1]["securityContext"].pop("seccompProfile")),
    (
        policies.run_without_rights,
        lambda o: _container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    (
        policies.write_nowhere,
        lambda o: _container(o)["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    (policies.write_nowhere, lambda o: _container(o)["volumeMounts"][0].pop("readOnly")),
    (policies.share_nothing_with_the_node, lambda o: pod_of(o)[1].update(hostNetwork=True)),
    (
        policies.share_nothing_with_the_node,
        lambda o: pod_of(o)[1]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    (policies.have_no_token, lambda o: pod_of(o)[1].pop("automountServiceAccountToken")),
    (policies.probe_everything, lambda o: _container(o).pop("livenessProbe")),
    (policies.select_the_pods, _spoil_budget),
    (policies.select_the_pods, lambda o: pod_of(o)[0].update({"app.kubernetes.io/name": "x"})),
    (policies.lead_to_the_port, lambda o: _container(o)["ports"][0].update(containerPort=8080)),
    (
        policies.limit_the_way_out,
        lambda o: find(o, "NetworkPolicy")["spec"]["egress"].append({}),
    ),
    (policies.survive_a_node, lambda o: pod_of(o)[1]["topologySpreadConstraints"].pop()),
    (policies.scale_what_exists, _spoil_autoscaler),
    (policies.scale_what_exists, lambda o: find(o, "Deployment")["spec"].update(replicas=2)),
    (
        policies.stay_in_one_namespace,
        lambda o: find(o, "ServiceMonitor")["metadata"].update(namespace="default"),
    ),
    (
        policies.hold_no_secret,
        lambda o: _container(o)["env"].append({"name": "INFERENCE_API_KEY", "value": "x" * 16}),
    ),
]


@pytest.mark.parametrize(
    ("policy", "fault"),
    FAULTS,
    ids=[f"{number}-{policy.__name__}" for number, (policy, _) in enumerate(FAULTS)],
)
def test_a_policy_finds_a_planted_fault(
    policy: Policy, fault: Callable[[list[Object]], object]
) -> None:
    """Each policy reports a manifest that violates it."""
    objects = render_overlay("cpu")
    fault(objects)
    assert list(policy(objects))


def _tmp_mount(container: Object) -> str:
    """The mount path of the container's writable volume."""
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    return str(paths["tmp"])


def _settings(overlay: str) -> Settings:
    """The settings that the container would use."""
    variables = _container(render_overlay(overlay))["env"]
    return read_settings({one["name"]: one["value"] for one in variables if "value" in one})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_can_read_its_settings(overlay: str) -> None:
    """Every variable, including the key's, is a setting with a valid value."""
    names = {variable["name"] for variable in _container(render_overlay(overlay))["env"]}
    assert names <= {f"INFERENCE_{field.upper()}" for field in Settings.model_fields}
    settings = _settings(overlay)
    assert settings.device == ("cuda" if overlay == "gpu" else "cpu")
    mounts = _container(render_overlay(overlay))["volumeMounts"]
    assert str(settings.bundles) in {mount["mountPath"] for mount in mounts}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_covers_the_longest_stop(overlay: str) -> None:
    """It covers drain, handshakes, a slow body, its answer, a slow reader and the reset."""
    pod = pod_of(render_overlay(overlay))[1]
    settings = _settings(overlay)
    assert "lifecycle" not in pod["containers"][0], "count the preStop hook too"
    longest_s = settings.drain_s + HANDSHAKE_GRACE_S * MOST_GRACES
    longest_s += settings.slow_client_s + settings.timeout_s + settings.slow_client_s + RESET_S
    assert longest_s < pod["terminationGracePeriodSeconds"] <= longest_s + 15


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_drain_outlasts_the_end_of_readiness(overlay: str) -> None:
    """Readiness fails several seconds before the drain ends, so that proxies can notice."""
    container = _container(render_overlay(overlay))
    probe = container["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert noticed_s + 3 < _settings(overlay).drain_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_suit_the_states_of_the_service(overlay: str) -> None:
    """Startup and readiness wait for golden samples; liveness checks less and fails later."""
    container = _container(render_overlay(overlay))
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    liveness = container["livenessProbe"]
    assert liveness["httpGet"]["path"] == "/livez"
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
    startup = container["startupProbe"]
    # A start took 26 s on a machine with a load of 17 (docs/containers.md).
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_suits_the_image(overlay: str) -> None:
    """User, port and writable folder match the Dockerfile, and the limits match compose."""
    dockerfile = instructions(ROOT / "service" / "Dockerfile")
    pod = pod_of(render_overlay(overlay))[1]
    container = pod["containers"][0]
    users = [words for name, words in dockerfile if name == "RUN" and "useradd" in words]
    assert str(pod["securityContext"]["runAsUser"]) in users[0]
    assert ("EXPOSE", [str(container["ports"][0]["containerPort"])]) in dockerfile
    served = [words for name, words in dockerfile if name == "CMD"][-1]
    assert " ".join(served).endswith(" ".join(["exec", *container["command"]]))
    assert any("BENTOML_HOME=/tmp/bentoml" in words for name, words in dockerfile if name == "ENV")
    tmp = next(volume for volume in pod["volumes"] if volume["name"] == "tmp")
    tmpfs = services()["service"]["tmpfs"]
    assert tmpfs == [f"{_tmp_mount(container)}:size=64m,mode=1777"]
    assert tmp["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    memory = container["resources"]["limits"]["memory"].removesuffix("i").lower()
    compose = services()["gpu" if overlay == "gpu" else "service"]
    assert memory == compose["deploy"]["resources"]["limits"]["memory"]


def test_the_pod_of_kserve_is_the_pod_of_the_deployment() -> None:
    """They differ only in the container's name and in a label that a Deployment sets."""
    deployed = pod_of(render_overlay("cpu"))[1]
    predicted = pod_of(render_overlay("kserve"))[1]
    deployed["containers"][0]["name"] = predicted["containers"][0]["name"]
    for constraint in deployed["topologySpreadConstraints"]:
        assert constraint.pop("matchLabelKeys") == ["pod-template-hash"]
    assert {name: predicted.get(name) for name in deployed} == deployed
    strategy = find(render_overlay("cpu"), "Deployment")["spec"]["strategy"]
    assert predicted["deploymentStrategy"] == strategy


def test_both_autoscalers_scale_alike() -> None:
    """KEDA has the same targets, limits and behaviour as the HorizontalPodAutoscaler."""
    autoscaler = find(render_overlay("cpu"), "HorizontalPodAutoscaler")["spec"]
    scaled = find(render_overlay("keda"), "ScaledObject")["spec"]
    queue, cpu = autoscaler["metrics"]
    assert scaled["triggers"][0]["metadata"]["threshold"] == queue["pods"]["target"]["averageValue"]
    utilization = str(cpu["resource"]["target"]["averageUtilization"])
    assert scaled["triggers"][1]["metadata"]["value"] == utilization
    advanced = scaled["advanced"]["horizontalPodAutoscalerConfig"]
    assert advanced["behavior"] == autoscaler["behavior"]
    assert scaled["minReplicaCount"] == autoscaler["minReplicas"]
    assert scaled["maxReplicaCount"] == autoscaler["maxReplicas"]
    assert scaled["scaleTargetRef"] == autoscaler["scaleTargetRef"]


def test_the_queue_at_which_a_replica_is_added_is_one_batch() -> None:
    """The autoscaler's target is the default of INFERENCE_MAX_BATCH_SAMPLES."""
    queue = find(render_overlay("cpu"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]
    assert queue["pods"]["target"]["averageValue"] == str(_settings("cpu").max_batch_samples)
