"""What a run's numbers were made on and by: hardware, versions, revision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from lsmha.devices.hardware import device_name

_PACKAGES = ("lsmha-sweep", "torch", "torchvision", "ray", "optuna", "numpy", "pandas", "pyarrow", "moocore")


def hardware() -> dict[str, Any]:
    """CPU, cores, GPUs and operating system of this machine."""
    return {
        "cpu": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results may depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_revision() -> str | None:
    """Revision of the code, with a mark if its checkout has uncommitted changes; None where it came without one."""
    checkout = Path(__file__).parents[1]
    try:
        origin = json.loads(distribution("lsmha-sweep").read_text("direct_url.json") or "{}")  # PEP 610
    except PackageNotFoundError:
        origin = {}
    if "vcs_info" in origin:
        return origin["vcs_info"]["commit_id"]
    if not (checkout / ".git").exists() and origin.get("url", "").startswith("file://"):
        checkout = Path(unquote(urlsplit(origin["url"]).path))  # installed as a copy of this folder
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        if not (checkout / ".git").exists():
            return None
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
