"""What the science imports, and what it does not: each test is a process that imports a good part of it."""

from __future__ import annotations

import subprocess
import sys

from repository import ROOT


def test_lsmha_imports_no_orchestration() -> None:
    code = """
import importlib, pkgutil, sys
import lsmha

modules = [module.name for module in pkgutil.walk_packages(lsmha.__path__, "lsmha.")]
for name in modules:
    importlib.import_module(name)
print(len(modules), *sorted({"ray", "optuna", "orchestrator"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *forbidden = done.stdout.split()
    assert int(count) >= 20
    assert forbidden == []


def test_only_randaugment_imports_torchvision() -> None:
    code = (
        "import sys; from lsmha.config import AugmentConfig; from lsmha.data import Augmentation;"
        "augment = AugmentConfig(flip=True, translate=2, random_erasing=0.5, mixup_alpha=1.0, cutmix_alpha=1.0);"
        "Augmentation(augment, (0.5,), (0.5,), 10);"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
