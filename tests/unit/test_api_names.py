"""What `lsmha` and `orchestrator` offer by name: all of it is there, documented, and loaded when it is used."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from repository import ROOT

import lsmha
import orchestrator

LSMHA = (
    "CCT VARIANTS Analysis AnalysisConfig AugmentConfig CommitteeResult DataConfig Dataset EpochMetrics Evaluation "
    "LatencyConfig LatencyMeasurement LsmhaError ModelConfig TrainConfig analysis analyze committees create_model data "
    "evaluate evaluate_committee hypervolume latency load_dataset load_logits load_model measure_latency model_cost "
    "models pareto pareto_mask pruning save_model train training"
)
ORCHESTRATOR = "Run StorageError SweepConfig SweepError UserError load_run load_sweep_config run_sweep"


@pytest.mark.parametrize(("package", "names"), [(lsmha, LSMHA), (orchestrator, ORCHESTRATOR)], ids=["lsmha", "orch"])
def test_exported_names(package: object, names: str) -> None:
    exported = importlib.import_module(package.__name__)  # type: ignore[attr-defined]
    assert sorted(exported.__all__) == sorted(names.split())
    assert set(exported.__all__) <= set(dir(exported))
    for name in exported.__all__:
        found = getattr(exported, name)
        if inspect.isclass(found) or inspect.isfunction(found) or inspect.ismodule(found):
            assert inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="nothing_like_this"):
        exported.nothing_like_this  # noqa: B018


def test_importing_them_loads_nothing_heavy() -> None:
    code = "import sys, lsmha, orchestrator; print(*sorted({'torch', 'ray', 'pandas', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_run_is_read_without_torch_and_ray(tmp_path: Path) -> None:
    code = """
import sys
from old_runs import old_run
from orchestrator import load_run
from pathlib import Path
print(load_run(old_run("complete", Path(sys.argv[1]))))
print(*sorted({"torch", "ray"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    said, loaded = done.stdout.splitlines()
    assert said == f"Run('{tmp_path}/complete': complete; 7 trials, 1 on the front, 4 finalist runs)"
    assert loaded.split() == []


def test_one_version() -> None:
    assert lsmha.__version__ == version("lsmha-sweep")
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.partition("\n## ")[2].startswith(f"[{lsmha.__version__}]"), "the changelog begins with this version"
