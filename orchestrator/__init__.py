"""Sweeps on Ray and Optuna, from a script or a notebook: `run_sweep`, and `load_run` for what a run folder holds.

What is offered here is loaded when it is first used: `import orchestrator` waits for nothing. `__init__.pyi` lists it.
"""

import os

import lazy_loader

# Read by Ray when it is imported, which whatever imports it first from this package does later.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Ray Tune asks for a home when it is imported, and ends for a user who has none and is not in the table of users. This
# is where Debian has the homes of users without one.
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = "/nonexistent"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
