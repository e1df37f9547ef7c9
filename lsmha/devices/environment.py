"""What a process that trains must find in its environment when it starts, because it pays."""

from __future__ import annotations

import os
import sys

ALLOCATOR_ENVIRONMENT = {
    # Big temporaries come back from glibc's own heap instead of from the kernel, page fault by page fault.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Settings of glibc's allocator; other C libraries take no notice."""


def restart_with_environment() -> None:
    """Start this process anew with these settings, unless it has them: for scripts that train without a sweep."""
    if not ALLOCATOR_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | ALLOCATOR_ENVIRONMENT)
