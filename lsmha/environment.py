"""What a process that trains must find in its environment when it starts, because it pays."""

from __future__ import annotations

ALLOCATOR_ENVIRONMENT = {
    # Big temporaries come back from glibc's own heap instead of from the kernel, page fault by page fault.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Settings of glibc's allocator; other C libraries take no notice."""
