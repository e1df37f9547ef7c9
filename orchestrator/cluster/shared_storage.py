"""Whether all nodes of a cluster see the same run folder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsmha.io.paths import RunPath, path_of
from orchestrator.errors import UserError


def check_shared(folder: RunPath) -> None:
    """Write in the run folder here and read it on every other node; write there and read it here.

    Nodes that join later are not asked: a finalist of theirs whose files do not arrive fails with that reason.

    Raises:
        UserError: A node sees another folder or none, or may not write there. What was written is gone again.
        OSError: It cannot be written here.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    name = f".shared-{uuid4().hex}"
    question = folder / name
    if others:
        question.write_bytes(name.encode())
    try:
        tasks = [(_ask(node["NodeID"], folder, name), node) for node in others]
        for task, node in tasks:
            answer = folder / f"{name}-{node['NodeID']}"
            try:
                problem = ray.get(task)
                if problem is None and not answer.exists():
                    problem = "what it writes does not arrive here"
            except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                continue  # it has left the cluster
            finally:
                with suppress(OSError):
                    answer.unlink(missing_ok=True)
            if problem is not None:
                raise UserError(
                    f"--out: must be on storage that all nodes of the cluster share, but {str(folder)!r} is not for "
                    f"{node['NodeManagerAddress']}: {problem}"
                )
    finally:
        with suppress(OSError):
            question.unlink(missing_ok=True)


def _ask(node_id: str, folder: RunPath, name: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(_answer)
    return task.options(num_cpus=0, max_retries=0, name="shared storage", scheduling_strategy=there).remote(
        str(folder), name, node_id
    )


def _answer(folder: str, name: str, node_id: str) -> str | None:
    """Read what the driver wrote and write something beside it; returns what does not work, in a few words."""
    try:
        if (path_of(folder) / name).read_bytes() != name.encode():
            return "it reads something else there"
        (path_of(folder) / f"{name}-{node_id}").write_bytes(b"")
    except FileNotFoundError:
        return "what is written here does not arrive there"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None
