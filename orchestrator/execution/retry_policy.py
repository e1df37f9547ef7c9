"""What becomes of a training run whose worker failed."""

from __future__ import annotations

from enum import Enum

MAX_ATTEMPTS = 3
"""How often a job is tried whose worker fails: an exception, a killed process."""
MAX_LOST_NODES = 20
"""How often it is tried besides because a node was lost: no fault of the job, unless its memory brings nodes down."""


class Decision(Enum):
    """What to do with a job."""

    RETRY = "begin it anew from its last epoch, and count the attempt"
    RESCHEDULE = "begin it anew from its last epoch, on another node"
    FAIL = "tell that it failed"


def decide(*, node_lost: bool, attempts: int, lost_nodes: int) -> Decision:
    """What to do with a job whose worker has failed.

    Args:
        node_lost: Whether the worker's node was lost with it.
        attempts: Failures of the job's workers before, lost nodes left out.
        lost_nodes: Nodes that the job has lost before.
    """
    if node_lost and lost_nodes < MAX_LOST_NODES:
        return Decision.RESCHEDULE
    return Decision.RETRY if attempts + 1 < MAX_ATTEMPTS else Decision.FAIL
