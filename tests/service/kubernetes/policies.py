"""Policies that linters of manifests such as kube-linter or Polaris check, as functions.

Each takes the objects of one overlay and yields the violations.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.service.kubernetes.render import Object, find, pod_of

Policy = Callable[[list[Object]], Iterator[str]]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# The only writable mounts, and the only kinds of volumes.
WRITABLE = {"/tmp", "/copied"}  # noqa: S108 - paths within the pod
VOLUMES = {"image", "emptyDir"}


def _containers(objects: list[Object]) -> list[Object]:
    _, pod = pod_of(objects)
    return [*pod.get("initContainers", []), *pod["containers"]]


def _of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [content for content in objects if content["kind"] == kind]


def pin_images(objects: list[Object]) -> Iterator[str]:
    """Every image and image volume has a tag other than latest, from a named registry."""
    _, pod = pod_of(objects)
    images = [container["image"] for container in _containers(objects)]
    images += [volume["image"]["reference"] for volume in pod["volumes"] if "image" in volume]
    for image in images:
        tag = re.fullmatch(r"[\w.-]+\.[\w.-]+/[\w./-]+[:@]([\w.:-]+)", image)
        if tag is None or tag[1] == "latest":
            yield f"{image}: no registry, or no fixed tag"


def set_resources(objects: list[Object]) -> Iterator[str]:
    """Every container has requests and limits for cores, memory and disk."""
    for container in _containers(objects):
        for part in ("requests", "limits"):
            given = set(container.get("resources", {}).get(part, {}))
            if missing := {"cpu", "memory", "ephemeral-storage"} - given:
                yield f"{container['name']}: {part} lack {sorted(missing)}"


def run_without_rights(objects: list[Object]) -> Iterator[str]:
    """No container runs as root, can gain privileges or has capabilities."""
    _, pod = pod_of(objects)
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) < 10_000:
        yield "the pod may run as root, or as a user of the node"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "the pod has no seccomp profile"
    for container in _containers(objects):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']}: may gain rights"
        if security.get("privileged") or security.get("runAsUser") == 0:
            yield f"{container['name']}: is privileged"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{container['name']}: keeps capabilities"


def write_nowhere(objects: list[Object]) -> Iterator[str]:
    """The root file system and all volumes are read-only, apart from the writable mounts."""
    for container in _containers(objects):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']}: the root file system can be written"
        for mount in container.get("volumeMounts", []):
            if not mount.get("readOnly") and mount["mountPath"] not in WRITABLE:
                yield f"{container['name']}: {mount['mountPath']} can be written"


def share_nothing_with_the_node(objects: list[Object]) -> Iterator[str]:
    """Namespaces, ports and folders of the node are not used, and emptyDirs are limited."""
    _, pod = pod_of(objects)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for container in _containers(objects):
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{container['name']}: takes a port of the node"
    for volume in pod["volumes"]:
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']}: {sorted(kinds)}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']}: no sizeLimit"


def have_no_token(objects: list[Object]) -> Iterator[str]:
    """The pod has a service account of its own, and neither has a token."""
    _, pod = pod_of(objects)
    account = find(objects, "ServiceAccount")
    if pod.get("serviceAccountName") != account["metadata"]["name"]:
        yield "the pod runs under another service account"
    if pod.get("automountServiceAccountToken") is not False:
        yield "the pod gets a token"
    if account.get("automountServiceAccountToken") is not False:
        yield "the service account's pods get a token"


def probe_everything(objects: list[Object]) -> Iterator[str]:
    """The service's container has all three probes, on one of its ports."""
    _, pod = pod_of(objects)
    container = pod["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    for name in PROBES:
        probe = container.get(name)
        if probe is None:
            yield f"no {name}"
        elif probe["httpGet"]["port"] not in ports:
            yield f"{name}: no such port"


def select_the_pods(objects: list[Object]) -> Iterator[str]:
    """Service, disruption budget, network policy and spread constraints select the pods."""
    labels, pod = pod_of(objects)
    selectors: list[tuple[str, Any]] = [
        ("Service", one["spec"]["selector"]) for one in _of_kind(objects, "Service")
    ]
    selectors += [
        ("Deployment", one["spec"]["selector"]["matchLabels"])
        for one in _of_kind(objects, "Deployment")
    ]
    budget = find(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    policy = find(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    selectors += [("PodDisruptionBudget", budget), ("NetworkPolicy", policy)]
    selectors += [
        ("spread constraint", one["labelSelector"]["matchLabels"])
        for one in pod.get("topologySpreadConstraints", [])
    ]
    for name, selector in selectors:
        if not selector or not selector.items() <= labels.items():
            yield f"{name}: {selector} does not select pods labelled {labels}"


def lead_to_the_port(objects: list[Object]) -> Iterator[str]:
    """The Service leads to a port of the container, and the network policy lets it through."""
    _, pod = pod_of(objects)
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    for service in _of_kind(objects, "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"Service: no port {port['targetPort']}"
    for rule in find(objects, "NetworkPolicy")["spec"]["ingress"]:
        if not rule.get("from") or {port["port"] for port in rule["ports"]} != {ports["http"]}:
            yield "NetworkPolicy: lets everybody in, or to another port"


def limit_the_way_out(objects: list[Object]) -> Iterator[str]:
    """The network policy covers both directions, and egress rules have destinations and ports."""
    spec = find(objects, "NetworkPolicy")["spec"]
    if set(spec["policyTypes"]) != {"Ingress", "Egress"}:
        yield "NetworkPolicy: one direction is open"
    for rule in spec["egress"]:
        if not rule.get("to") or not rule.get("ports"):
            yield "NetworkPolicy: a way out without destination or port"


def survive_a_node(objects: list[Object]) -> Iterator[str]:
    """Pods spread over nodes and zones; one may be evicted at a time, and one always remains."""
    _, pod = pod_of(objects)
    keys = {one["topologyKey"] for one in pod.get("topologySpreadConstraints", [])}
    if keys != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
        yield f"pods spread over {sorted(keys)}"
    if find(objects, "PodDisruptionBudget")["spec"].get("maxUnavailable") != 1:
        yield "the disruption budget is not one pod"


def scale_what_exists(objects: list[Object]) -> Iterator[str]:
    """There is one autoscaler, for at least two replicas, and it targets the service's pods."""
    scalers = _of_kind(objects, "HorizontalPodAutoscaler") + _of_kind(objects, "ScaledObject")
    if len(scalers) != 1:
        yield f"{len(scalers)} autoscalers"
        return
    spec = scalers[0]["spec"]
    least = spec.get("minReplicas", spec.get("minReplicaCount", 1))
    most = spec.get("maxReplicas", spec.get("maxReplicaCount", 1))
    if not 2 <= least < most:
        yield f"{least} to {most} replicas"
    targets = {one["metadata"]["name"] for one in _of_kind(objects, "Deployment")}
    # KServe makes the Deployment of this name.
    targets |= {
        f"{one['metadata']['name']}-predictor" for one in _of_kind(objects, "InferenceService")
    }
    if spec["scaleTargetRef"]["name"] not in targets:
        yield f"no {spec['scaleTargetRef']['name']} to scale"
    if any("replicas" in one["spec"] for one in _of_kind(objects, "Deployment")):
        yield "the Deployment sets replicas, which the autoscaler does too"


def stay_in_one_namespace(objects: list[Object]) -> Iterator[str]:
    """Every object is in the namespace, which refuses pods with more privileges."""
    namespace = find(objects, "Namespace")["metadata"]
    if namespace["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace admits any pod"
    for content in objects:
        within = content["metadata"].get("namespace")
        if content["kind"] != "Namespace" and within != namespace["name"]:
            yield f"{content['kind']} is in namespace {within}"


def hold_no_secret(objects: list[Object]) -> Iterator[str]:
    """The manifests contain no Secret, and the key is read from one by reference."""
    if _of_kind(objects, "Secret"):
        yield "a Secret"
    for container in _containers(objects):
        for variable in container.get("env", []):
            if "KEY" in variable["name"] and "value" in variable:
                yield f"{container['name']}: {variable['name']} as plain text"


POLICIES: tuple[Policy, ...] = (
    pin_images,
    set_resources,
    run_without_rights,
    write_nowhere,
    share_nothing_with_the_node,
    have_no_token,
    probe_everything,
    select_the_pods,
    lead_to_the_port,
    limit_the_way_out,
    survive_a_node,
    scale_what_exists,
    stay_in_one_namespace,
    hold_no_secret,
)
