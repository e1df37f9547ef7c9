"""Starting a local cluster: Ray's own waits last as long as it may take, and what was changed for it is put back."""

from __future__ import annotations

import os

import pytest
from ray._private import ray_constants, services

from orchestrator.cluster import local_cluster


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster.time, "sleep", lambda seconds: None)


def test_a_slow_node_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RuntimeError, RuntimeError, {"node_manager_port": 1}])

    def get_node(address: str, *, node_id: str) -> object:
        assert (address, node_id) == ("here", "this")
        answer = next(answers)
        if answer is RuntimeError:
            raise RuntimeError
        return answer

    monkeypatch.setattr(local_cluster, "_raylet_lives", lambda: True)
    monkeypatch.setattr(services, "get_node", get_node)
    with local_cluster.starting_here():
        assert services.get_node("here", node_id="this") == {"node_manager_port": 1}
    assert services.get_node is get_node


@pytest.mark.parametrize("cause", ["it ended", "it hangs"])
def test_a_node_that_does_not_start_is_told_in_a_line(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node() -> None:
        raise RuntimeError

    if cause == "it hangs":
        monkeypatch.setattr(local_cluster, "_raylet_lives", lambda: True)
        monkeypatch.setattr(local_cluster, "PATIENCE_S", 0)
    monkeypatch.setattr(services, "get_node", get_node)
    # This process has started no raylet.
    with local_cluster.starting_here(), pytest.raises(ChildProcessError, match=r"did not start.*raylet\.out$"):
        services.get_node()


def test_what_was_set_to_start_it_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    before = dict(os.environ), dict(vars(ray_constants))
    with local_cluster.starting_here():
        assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert (dict(os.environ), dict(vars(ray_constants))) == before
