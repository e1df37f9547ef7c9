"""What can go wrong in the library, foreseen: each of these is one line for a user, and no programming error.

LsmhaError
├── DataError             images cannot be used as configured
├── DamagedFileError      a file does not hold what was once written to it
├── ConfigurationError    settings, data, ranks or a checkpoint do not fit together
├── MemoryShortageError   a training run needs more memory than is free
├── DivergenceError       loss or weights are no longer finite
├── LatencyError          latency could not be measured
└── BenchmarkError        a comparison could not be made
    ├── SubjectError          a process that was to train ended instead
    └── MissingBaselineError  a package to compare with is not installed

Settings that are invalid by themselves raise `pydantic.ValidationError`, and arguments of a function that are, a plain
`ValueError`; both are the caller's to prevent.
"""

from __future__ import annotations


class LsmhaError(Exception):
    """Base of all that is foreseen; the message is one line."""


class DataError(LsmhaError, ValueError):
    """Images that cannot be used as configured: the message names the setting, its value and what is allowed."""


class DamagedFileError(LsmhaError, ValueError):
    """A file does not hold what was once written to it; the message names it."""


class ConfigurationError(LsmhaError, ValueError):
    """Settings, data, the number of ranks, or a checkpoint do not fit together."""


class MemoryShortageError(LsmhaError, ValueError):
    """A training run needs more memory than is free."""


class DivergenceError(LsmhaError, RuntimeError):
    """The loss or the weights are no longer finite: the run is of no more use."""


class LatencyError(LsmhaError, RuntimeError):
    """Latency could not be measured."""


class BenchmarkError(LsmhaError, RuntimeError):
    """A comparison could not be made."""


class SubjectError(BenchmarkError):
    """A process that was to train ended instead; the message is its last words."""


class MissingBaselineError(BenchmarkError):
    """A package to compare with is not installed; the message says how to get it."""
