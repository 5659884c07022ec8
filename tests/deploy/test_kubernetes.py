"""The manifests of deploy/k8s are what Kubernetes and KubeRay accept, and fit together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports a deprecated part of jsonschema
    import kubernetes_validate

FOLDER = Path(__file__).parents[2] / "deploy" / "k8s"
VERSIONS = ("1.31", "1.35")
Manifest = dict[str, Any]


def load(name: str) -> list[Manifest]:
    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]


KUSTOMIZATION = load("kustomization.yaml")[0]
MANIFESTS = [found for name in KUSTOMIZATION["resources"] for found in load(name)]
NATIVE = [found for found in MANIFESTS if found["kind"] != "RayCluster"]
CLUSTER = next(found for found in MANIFESTS if found["kind"] == "RayCluster")


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def one(kind: str, name: str) -> Manifest:
    return next(found for found in MANIFESTS if title(found) == f"{kind}-{name}")


def pods() -> Iterator[tuple[str, Manifest]]:
    """Every pod template and what it belongs to."""
    for manifest in NATIVE:
        if "template" in manifest.get("spec", {}):
            yield title(manifest), manifest["spec"]["template"]
    yield "head", CLUSTER["spec"]["headGroupSpec"]["template"]
    for group in CLUSTER["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def variables(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", NATIVE, ids=title)
def test_kubernetes_accepts_it_strictly(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_checker_refuses_what_kubernetes_would() -> None:
    broken = one("Deployment", "mergenet-api") | {"spec": {"replicas": "two"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize(("name", "template"), list(pods()), ids=[name for name, _ in pods()])
def test_pods_of_a_ray_cluster_are_pods_too(name: str, template: Manifest) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}}
    kubernetes_validate.validate(pod | {"spec": template["spec"]}, VERSIONS[0], strict=True)


def test_the_ray_cluster_has_what_kuberay_requires() -> None:
    assert CLUSTER["apiVersion"] == "ray.io/v1"
    assert CLUSTER["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    spec = CLUSTER["spec"]
    assert set(spec) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(spec["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={spec['rayVersion']}" in constraints
    for group in spec["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1


def test_every_part_of_the_fleet_has_the_token_the_address_and_no_open_dashboard() -> None:
    for name, template in pods():
        for container in template["spec"]["containers"]:
            if container["image"] == "mergenet-fleet":
                found = variables(container)
                assert found["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "mergenet", "key": "ray-token"}}, name
                head, _, port = found["MERGENET_RAY_ADDRESS"].partition(":")
                assert head == f"{CLUSTER['metadata']['name']}-head-svc"
                ports = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
                assert {"name": "gcs-server", "containerPort": int(port)} in ports
                assert 8265 not in [port["containerPort"] for port in container.get("ports", [])]


def test_a_gpu_worker_has_a_limit() -> None:
    (container,) = one("Deployment", "mergenet-worker")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1


def test_redis_keeps_its_password_appends_to_its_own_disk_and_has_the_settings_of_the_other_deployment() -> None:
    redis = one("StatefulSet", "mergenet-redis")["spec"]
    (container,) = redis["template"]["spec"]["containers"]
    assert variables(container)["REDISCLI_AUTH"] == {"secretKeyRef": {"name": "mergenet", "key": "redis-password"}}
    assert redis["volumeClaimTemplates"][0]["metadata"]["name"] == container["volumeMounts"][0]["name"]
    settings = one("ConfigMap", "mergenet-redis")["data"]["redis.conf"]
    assert settings == (FOLDER.parent / "redis.conf").read_text()
    assert "appendonly yes" in settings


def test_redis_is_reached_by_the_api_and_the_workers_only() -> None:
    policy = one("NetworkPolicy", "mergenet-redis")["spec"]
    assert policy["podSelector"]["matchLabels"]["part"] == "redis"
    ((source,),) = [rule["from"] for rule in policy["ingress"]]
    parts = source["podSelector"]["matchExpressions"][0]["values"]
    using = {
        template["metadata"]["labels"]["part"]
        for _, template in pods()
        for container in template["spec"]["containers"]
        if "MERGENET_REDIS_URL" in variables(container)
    }
    assert set(parts) == using == {"api", "worker", "fleet"}


def test_what_trains_and_what_serves_share_one_volume_that_many_may_write() -> None:
    claim = one("PersistentVolumeClaim", "mergenet-jobs")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in pods():
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in template["spec"].get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        for container in template["spec"]["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            if container["image"] != "redis:7-alpine" and container["name"] != "ray-head":
                assert mounts["jobs"] == "/srv/mergenet", name
                assert claims["jobs"] == "mergenet-jobs", name


def test_no_secret_lies_in_the_manifests_and_every_image_is_named_by_the_kustomization() -> None:
    assert not [found for found in MANIFESTS if found["kind"] == "Secret"]
    images = {container["image"] for _, template in pods() for container in template["spec"]["containers"]}
    assert images == {image["name"] for image in KUSTOMIZATION["images"]} | {"redis:7-alpine"}


def test_kustomize_knows_where_a_ray_cluster_keeps_its_images() -> None:
    for entry in load(KUSTOMIZATION["configurations"][0])[0]["images"]:
        found: Any = [CLUSTER]
        for word in entry["path"].split("/"):
            nested = [part[word] for part in found]
            found = [part for each in nested for part in (each if isinstance(each, list) else [each])]
        assert set(found) == {"mergenet-fleet"}
