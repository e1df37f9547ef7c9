"""What memory a device has, and what is free of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def total_memory(device: torch.device) -> int:
    """Bytes that the device has; of a machine no more than the process's control group may take (Linux, version 2)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = psutil.virtual_memory().total
    limit = _of_control_group("memory.max")
    return total if limit is None else min(total, limit)


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take on the device: of a GPU what its allocator holds in reserve included, of a
    machine no more than what the process's control group has left (Linux, version 2)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit, used = _of_control_group("memory.max"), _of_control_group("memory.current")
    return free if limit is None or used is None else min(free, limit - used)


def _of_control_group(name: str) -> int | None:
    """A number of bytes that the process's control group states; None where there is no limit, or none is known."""
    try:
        stated = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return None if stated == "max" else int(stated)
