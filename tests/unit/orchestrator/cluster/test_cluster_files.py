"""What cluster.yaml, cluster.local.yaml and kuberay.yaml say: valid for Ray, closed to others, free of secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from repository import ROOT

RAY_UP = ("cluster.yaml", "cluster.local.yaml")
SPECS = (*RAY_UP, "kuberay.yaml")
PLACEHOLDER = re.compile(r"\b(?:[A-Z]+(?:_[A-Z]+)+|BUCKET|USER|OWNER|REVISION|IMAGE)\b")
NO_PLACEHOLDER = {"RAY_AUTH_MODE", "RAY_TMPDIR", "RAY_HEAD_IP", "RAY_USAGE_STATS_ENABLED"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A file for `ray up`, with what Ray adds to it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(text_of(name)))


def commands(config: dict[str, Any], node: str) -> list[str]:
    """All that a kind of node, head or worker, runs until Ray is up."""
    return config[f"{node}_setup_commands"] + config[f"{node}_start_ray_commands"]


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_it(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(load(name))


@pytest.mark.parametrize("node", ["head", "worker"])
@pytest.mark.parametrize("name", RAY_UP)
def test_every_node_asks_for_the_token_and_shows_others_nothing(name: str, node: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    all_of_it = "\n".join(commands(config, node))
    assert "RAY_AUTH_MODE=token" in all_of_it
    assert "mkdir -p -m 700 ~/.lsmha" in all_of_it
    assert "RAY_TMPDIR=$HOME/.lsmha" in all_of_it
    (start,) = (command for command in commands(config, node) if "ray start" in command)
    assert re.findall(r"--dashboard-host=(\S+)", start) == (["127.0.0.1"] if node == "head" else [])
    (install,) = (command for command in commands(config, node) if "pip install" in command)
    assert install.count("@REVISION") == install.count("/REVISION/constraints.txt") == 1


@pytest.mark.parametrize("name", SPECS)
def test_it_holds_no_secret(name: str) -> None:
    # Keys and tokens of AWS, private keys, and anything as long and random as Ray's token.
    secret = re.compile(
        r"\bA[KS]IA[A-Z0-9]{12,}|-----BEGIN|aws_secret|RAY_AUTH_TOKEN=|\b[0-9a-f]{32,}\b|[A-Za-z0-9+]{40,}"
    )
    assert secret.findall(text_of(name)) == []


@pytest.mark.parametrize("name", SPECS)
def test_words_to_replace_are_in_the_guide(name: str) -> None:
    assert "word in CAPITALS" in text_of(name)
    words = set(PLACEHOLDER.findall(text_of(name))) - NO_PLACEHOLDER
    assert len(words) >= 4
    guide = text_of("docs/clusters.md")
    assert {word for word in words if f"`{word}`" not in guide} == set()


def test_aws_nodes_are_closed_and_the_head_trains_nothing() -> None:
    config = load("cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    for kind in types.values():
        node = kind["node_config"]
        # Ray's own group lets SSH in from everywhere, its own role may do anything with all machines and buckets.
        assert node["SecurityGroupIds"] == ["SECURITY_GROUP"]
        assert node["IamInstanceProfile"].keys() == {"Name"}
        assert node["MetadataOptions"] == {"HttpTokens": "required"}
    assert len({kind["node_config"]["InstanceType"] for kind in types.values()}) == 1, "latencies would not compare"


def test_aws_head_tells_what_the_cluster_can_grow_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    from orchestrator.cluster import autoscaler_limits

    config = load("cluster.yaml")
    config["available_node_types"]["gpu_worker"]["resources"] = {"CPU": 4, "GPU": 1}  # as Ray finds out
    left_there = tmp_path / "ray_bootstrap_config.yaml"
    left_there.write_text(json.dumps(config))
    assert config["head_start_ray_commands"][-1].endswith(
        "python -m orchestrator.cluster.autoscaler_limits ~/ray_bootstrap_config.yaml"
    )
    told: list[bytes] = []

    class Worker:
        class gcs_client:  # noqa: N801
            report_cluster_config = told.append

    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray._private.worker, "global_worker", Worker)
    autoscaler_limits.tell_limits(left_there)
    groups = {group.name: group for group in ClusterConfig.FromString(told[0]).node_group_configs}
    assert (groups["gpu_worker"].max_count, dict(groups["gpu_worker"].resources)) == (8, {"CPU": 4, "GPU": 1})
    assert groups["head"].max_count == 0


POD_TEMPLATE = {"type": "object", "required": ["spec"]}  # which Kubernetes' own schema tells more of
START_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}, "additionalProperties": False},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "properties": {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": {"type": "integer"},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            },
            "additionalProperties": False,
        },
        "headGroupSpec": {
            "required": ["template"],
            "properties": {
                "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
                "rayStartParams": START_PARAMETERS,
                "template": POD_TEMPLATE,
            },
            "additionalProperties": False,
        },
        "workerGroupSpecs": {
            "type": "array",
            "items": {
                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                "properties": {
                    "groupName": {"type": "string"},
                    "replicas": {"type": "integer"},
                    "minReplicas": {"type": "integer"},
                    "maxReplicas": {"type": "integer"},
                    "rayStartParams": START_PARAMETERS,
                    "template": POD_TEMPLATE,
                },
                "additionalProperties": False,
            },
        },
    },
}
"""What KubeRay 1.5.1 to 1.7.1 reads of a RayCluster's specification, by the reference of its API: of those fields that
the manifest has."""


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_and_its_ray_operator_accept_the_manifest(version: str) -> None:
    claim, policy, cluster = yaml.safe_load_all(text_of("kuberay.yaml"))
    jsonschema.validate(cluster["spec"], RAY_CLUSTER)
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]} for group in groups]
    for resource in (claim, policy, *pods):
        kubernetes_validate.validate(resource, version, strict=True)


def test_kubernetes_pods_are_closed_and_the_head_trains_nothing() -> None:
    claim, policy, cluster = yaml.safe_load_all(text_of("kuberay.yaml"))
    assert [resource["kind"] for resource in (claim, policy, cluster)] == [
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "RayCluster",
    ]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    own = {"podSelector": {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}}
    assert policy["spec"] == own | {"policyTypes": ["Ingress"], "ingress": [{"from": [own]}]}
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    head, (worker,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"] == {"num-cpus": "0", "dashboard-host": "127.0.0.1"}
    assert (worker["replicas"], worker["minReplicas"], worker["maxReplicas"]) == (0, 0, 8)
    for group in (head, worker):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert not any("TOKEN" in variable["name"] for variable in container["env"])
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_versions_of_ray_are_one() -> None:
    (version,) = re.findall(r"^ray==(\S+)", text_of("constraints.txt"), re.MULTILINE)
    assert yaml.safe_load(text_of("kuberay.yaml").split("---")[-1])["spec"]["rayVersion"] == version
