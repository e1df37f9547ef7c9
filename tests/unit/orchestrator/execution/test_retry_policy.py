"""What becomes of a job whose worker failed: each case of the policy."""

from __future__ import annotations

import pytest

from orchestrator.execution.retry_policy import MAX_ATTEMPTS, MAX_LOST_NODES, Decision, decide


@pytest.mark.parametrize(
    ("node_lost", "attempts", "lost_nodes", "decision"),
    [
        (False, 0, 0, Decision.RETRY),
        (False, MAX_ATTEMPTS - 2, 0, Decision.RETRY),
        (False, MAX_ATTEMPTS - 1, 0, Decision.FAIL),
        (True, 0, 0, Decision.RESCHEDULE),
        (True, MAX_ATTEMPTS - 1, 0, Decision.RESCHEDULE),
        (True, 0, MAX_LOST_NODES - 1, Decision.RESCHEDULE),
        (True, 0, MAX_LOST_NODES, Decision.RETRY),
        (True, MAX_ATTEMPTS - 1, MAX_LOST_NODES, Decision.FAIL),
        (False, 0, MAX_LOST_NODES, Decision.RETRY),
    ],
)
def test_decisions(node_lost: bool, attempts: int, lost_nodes: int, decision: Decision) -> None:
    assert decide(node_lost=node_lost, attempts=attempts, lost_nodes=lost_nodes) == decision


@pytest.mark.parametrize(("node_lost", "tries"), [(False, MAX_ATTEMPTS), (True, MAX_LOST_NODES + MAX_ATTEMPTS)])
def test_every_job_ends(node_lost: bool, tries: int) -> None:
    attempts = lost_nodes = tried = 0
    while True:
        tried += 1
        match decide(node_lost=node_lost, attempts=attempts, lost_nodes=lost_nodes):
            case Decision.RETRY:
                attempts += 1
            case Decision.RESCHEDULE:
                lost_nodes += 1
            case Decision.FAIL:
                break
    assert tried == tries
