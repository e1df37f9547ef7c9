"""What holds for the repository as a whole: its YAML files load, its layers stay apart, its README tells the truth."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from repository import ROOT, SEARCH_SPACES

from orchestrator.config.yaml import load_sweep_config
from orchestrator.search.build import build_space

PACKAGES = ("lsmha", "orchestrator")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_MODULES, MAX_LINES = 13, 60


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.stem)
def test_search_space_is_valid(path: Path) -> None:
    config = load_sweep_config(path)
    space = build_space(config)
    assert config.name == path.stem, "the default run folder is called like the file"
    # Small enough to be searched, and large enough for the trials asked for.
    assert len(space.points) >= config.search.num_trials


def test_pareto_space_is_large() -> None:
    assert len(build_space(load_sweep_config(ROOT / "search_spaces" / "pareto.yaml")).points) >= 500


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "heads.yaml").write_text(example)
    config = load_sweep_config(tmp_path / "heads.yaml")
    assert not build_space(config).is_finite
    assert config.finalists.epochs == 200


@pytest.mark.parametrize(
    "arguments", [["validate", str(SEARCH_SPACES[0])], ["schema"], ["run", "--help"]], ids=lambda all: all[0]
)
def test_what_needs_neither_torch_nor_ray_does_not_wait_for_them(arguments: list[str]) -> None:
    code = f"""
import sys
from orchestrator import cli

sys.argv = ["lsmha-sweep", *{arguments!r}]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert not {{"torch", "ray"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "orchestrator.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "ray", "pandas", "optuna", "matplotlib"})


FOLDERS = sorted({path.parent for path in MODULES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES


def test_rooms_of_the_orchestrator_offer_nothing_but_their_modules() -> None:
    for file in (ROOT / "orchestrator").rglob("__init__.py"):
        assert file.parent.name == "orchestrator" or not file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_import_nothing_without_a_reason(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for function in (node for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < MAX_LINES, function.name
        # That commands import what they do when they are called is said once, at the top of the file.
        for node in ast.walk(function) if path.name != "cli.py" else ():
            if isinstance(node, ast.Import | ast.ImportFrom):
                line = lines[node.lineno - 1]
                assert "  # " in line or _above_the_imports(lines, node.lineno).startswith("#"), line.strip()


def _above_the_imports(lines: list[str], number: int) -> str:
    """The line above the block of imports that the line of that number, from 1, is in."""
    above = lines[number - 2].strip()
    return _above_the_imports(lines, number - 1) if above.startswith(("from ", "import ")) else above


def test_generated_documentation_is_up_to_date() -> None:
    generate = _script("docs/generate.py")
    for file in generate.GENERATED:
        assert (ROOT / file).read_text(encoding="utf-8") == generate.generated(file), "run `python docs/generate.py`"


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = document.parent / file if file else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_tracked_files_name_no_machine() -> None:
    # Written as patterns, so that this file does not contain what it looks for.
    machine = re.compile(
        r"(?<![\w.~}-])/(?:root|home/[\w.-]+|Users/[\w.-]+)/"  # somebody's home folder
        r"|\b(?:test\.)?pypi\.org\b|\bpythonhosted\.org\b|\bpypi\.python\.org\b"  # package registries and mirrors
        r"|\b[\w.-]*(?:artifactory|devpi|jfrog|nexus)[\w-]*\.[\w.-]+"
        r"|--(?:extra-)?index-url[ =]https?://(?!download\.pytorch\.org/)"
    )
    found = []
    for path in _tracked_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # not text, or removed and not committed yet
        found += [f"{path}: {match.group()}" for match in machine.finditer(text)]
    assert found == []


def _script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _tracked_files() -> list[str]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for path in listing.stdout.split("\0") if path]
