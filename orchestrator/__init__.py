"""Orchestration of sweeps with Ray and Optuna."""

import os

# Read by Ray when it is imported, which whatever imports it first from this package does later.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
