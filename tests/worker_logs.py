"""What the workers of the session's cluster have logged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import ray


def worker_logs() -> dict[str, str]:
    """Text of every worker's log, by its file's name; of workers that have ended, too.

    Ray keeps some 200 logs open. Above that it moves those of ended workers into `old`, at any moment.
    """
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    texts = {}
    for folder in (logs, logs / "old"):  # in the order in which they move
        for path in folder.glob("worker-*.out"):
            with suppress(FileNotFoundError):
                texts[path.name] = path.read_text()
    return texts
