"""`ray up cluster.yaml` on a simulated AWS: what Ray's own launcher asks the cloud for, by its own calls.

The hosts are not there: `ssh` and `rsync` are stand-ins that say yes and note what was asked of them. What nodes do
with it is the subject of the tests of `cluster.local.yaml`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from background import PATIENCE_S
from moto.server import ThreadedMotoServer
from repository import ROOT

REGION = "us-west-2"
NOTES = """#!{python}
import pathlib, shutil, sys
folder = pathlib.Path({folder!r})
with (folder / "asked").open("a") as asked:
    print(pathlib.Path(sys.argv[0]).name, *sys.argv[1:], file=asked)
for word in sys.argv[1:]:
    if "ray-bootstrap-" in word and pathlib.Path(word).is_file():
        shutil.copy(word, folder / "ray_bootstrap_config.yaml")
"""


@dataclass
class Account:
    """A simulated account, prepared as docs/clusters.md says."""

    folder: Path
    environment: dict[str, str]
    spec: Path
    security_group: str
    image: str

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        )

    def ray(self, *arguments: str) -> str:
        told = subprocess.run(
            [str(Path(sys.executable).parent / "ray"), *arguments],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert told.returncode == 0, told.stdout
        return told.stdout

    def instances(self) -> list[dict[str, Any]]:
        """Those that are not terminated, the head first."""
        pages = self.client("ec2").describe_instances()["Reservations"]
        running = [i for page in pages for i in page["Instances"] if i["State"]["Name"] == "running"]
        return sorted(running, key=lambda instance: self.tags(instance)["ray-node-type"])

    @staticmethod
    def tags(instance: dict[str, Any]) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}

    def grants(self) -> tuple[set[str], set[str], set[str]]:
        """What lets somebody in: security groups, roles and instance profiles."""
        iam = self.client("iam")
        return (
            {group["GroupId"] for group in self.client("ec2").describe_security_groups()["SecurityGroups"]},
            {role["RoleName"] for role in iam.list_roles()["Roles"]},
            {profile["InstanceProfileName"] for profile in iam.list_instance_profiles()["InstanceProfiles"]},
        )


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh", "rsync"):
        (programs / name).write_text(NOTES.format(python=sys.executable, folder=str(tmp_path)))
        (programs / name).chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "LANG": "C.UTF-8",
    }
    made = Account(tmp_path, environment, tmp_path / "cluster.yaml", "", "")
    made.ray("get-auth-token", "--generate")
    ec2, iam = made.client("ec2"), made.client("iam")
    made.security_group = ec2.create_security_group(GroupName="lsmha-sweep", Description="lsmha-sweep")["GroupId"]
    made.image = ec2.describe_images()["Images"][0]["ImageId"]
    for profile in ("head-profile", "worker-profile"):
        iam.create_instance_profile(InstanceProfileName=profile)
    text = (ROOT / "cluster.yaml").read_text()
    for word, value in {
        "SECURITY_GROUP": made.security_group,
        "ami-IMAGE": made.image,
        "HEAD_PROFILE": "head-profile",
        "WORKER_PROFILE": "worker-profile",
        "OWNER": "owner",
        "REVISION": "0" * 40,
    }.items():
        text = text.replace(word, value)
    made.spec.write_text(text.replace("./search_spaces", str(ROOT / "search_spaces")))
    yield made
    server.stop()


def test_the_cloud_is_asked_for_what_the_documents_promise(account: Account) -> None:
    before = account.grants()
    account.ray("up", str(account.spec), "--yes", "--no-config-cache")
    # The head's autoscaler has the configuration that was copied there, and starts workers through the same provider.
    account.environment["RAY_BOOTSTRAP"] = str(account.folder / "ray_bootstrap_config.yaml")
    worker = (
        "import os, yaml\n"
        "from ray.autoscaler._private.aws.node_provider import AWSNodeProvider\n"
        "config = yaml.safe_load(open(os.environ['RAY_BOOTSTRAP']))\n"
        "provider = AWSNodeProvider(config['provider'], config['cluster_name'])\n"
        "provider.create_node(config['available_node_types']['gpu_worker']['node_config'],\n"
        "    {'ray-node-type': 'worker', 'ray-user-node-type': 'gpu_worker'}, 1)\n"
    )
    subprocess.run([sys.executable, "-c", worker], env=account.environment, check=True, timeout=PATIENCE_S)

    head, gpu_worker = account.instances()
    assert [account.tags(node)["ray-node-type"] for node in (head, gpu_worker)] == ["head", "worker"]
    for node, profile in ((head, "head-profile"), (gpu_worker, "worker-profile")):
        assert (node["InstanceType"], node["ImageId"]) == ("g5.xlarge", account.image)
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [account.security_group]
        assert node["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/{profile}")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["Placement"]["AvailabilityZone"] == "us-west-2a"
        volume_ids = [mapping["Ebs"]["VolumeId"] for mapping in node["BlockDeviceMappings"]]
        (volume,) = account.client("ec2").describe_volumes(VolumeIds=volume_ids)["Volumes"]
        assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (128, "gp3", True)
        attribute = account.client("ec2").describe_instance_attribute(
            InstanceId=node["InstanceId"], Attribute="userData"
        )
        assert not attribute["UserData"], "nothing is told to a node but over SSH"
    assert "InstanceLifecycle" not in head
    assert gpu_worker["InstanceLifecycle"] == "spot"
    # Ray made no group that lets SSH in from everywhere, and no role that may do anything.
    assert account.grants() == before

    asked = (account.folder / "asked").read_text()
    token = (account.folder / ".ray" / "auth_token").read_text().strip()
    assert token not in asked, "other users of a node would see it among its processes"
    assert token not in (account.folder / "ray_bootstrap_config.yaml").read_text()
    assert re.search(r"rsync .*/\.ray/auth_token", asked)
    assert re.search(r"ray start --head .*--dashboard-host=127\.0\.0\.1", asked)
    assert "autoscaler_limits" in asked

    account.ray("down", str(account.spec), "--yes")
    assert account.instances() == []
