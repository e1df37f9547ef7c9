"""What the autoscaler of `ray up` may add, told to the cluster; run on its head once Ray has started there.

    python -m orchestrator.cluster.autoscaler_limits ~/ray_bootstrap_config.yaml

Ray has a place for these limits, which its own libraries read as `cluster.capacity` does, but its autoscaler
(2.60) does not write there. Without them a sweep plans with the nodes that are there when it starts, and a cluster
without workers looks as if nothing would ever fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
import ray.core.generated.autoscaler_pb2 as generated


def tell_limits(config: Path) -> None:
    """Report the node types of a cluster's configuration, as `ray up` leaves it on the head (JSON).

    Raises:
        OSError: It cannot be read.
        ConnectionError: No cluster runs here.
    """
    messages: Any = generated
    limits = messages.ClusterConfig()
    for name, kind in json.loads(config.read_text())["available_node_types"].items():
        resources = {key: int(amount) for key, amount in kind["resources"].items()}
        limits.node_group_configs.add(name=name, max_count=kind["max_workers"], resources=resources)
    ray.init("auto", log_to_driver=False)
    worker: Any = ray._private.worker.global_worker
    worker.gcs_client.report_cluster_config(limits.SerializeToString())


if __name__ == "__main__":
    tell_limits(Path(sys.argv[1]).expanduser())
