"""The environment of a process that trains."""

from __future__ import annotations

import os
import subprocess
import sys

from lsmha.devices.environment import ALLOCATOR_ENVIRONMENT

SCRIPT = """
import os, sys
print("started", sys.argv[1:], flush=True)
from lsmha.devices.environment import restart_with_environment
restart_with_environment()
print(os.environ["MALLOC_TOP_PAD_"], sys.flags.dev_mode)
"""


def test_a_script_starts_anew_with_the_settings_once() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_ENVIRONMENT}
    for settings, starts in (({}, 2), (ALLOCATOR_ENVIRONMENT, 1)):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", SCRIPT, "an argument"],
            env=environment | settings, capture_output=True, text=True, check=True,
        )  # fmt: skip
        *started, last = done.stdout.splitlines()
        assert started == ["started ['an argument']"] * starts
        assert last == f"{ALLOCATOR_ENVIRONMENT['MALLOC_TOP_PAD_']} True"
