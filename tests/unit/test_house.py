"""What holds for the repository as a whole: its YAML files load, its layers stay apart, its README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from orchestrator.search import build_space
from orchestrator.sweep_yaml import load_sweep_config

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_search_space_is_valid(path: Path) -> None:
    config = load_sweep_config(path)
    space = build_space(config)
    assert config.name == path.stem, "the default run folder is called like the file"
    # Small enough to be searched, and large enough for the trials asked for.
    assert len(space.points) >= config.search.num_trials


def test_pareto_space_is_large() -> None:
    assert len(build_space(load_sweep_config(ROOT / "search_spaces" / "pareto.yaml")).points) >= 500


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


@pytest.mark.parametrize(
    "arguments", [["validate", str(SPACES[0])], ["schema"], ["run", "--help"]], ids=lambda all: all[0]
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


def test_readme_tree_is_the_repository() -> None:
    listed = _readme_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    absent = [path for path in listed if not (ROOT / path).exists()]
    assert absent == []
    sources = {path.relative_to(ROOT).as_posix() for path in SPACES}
    for package in ("lsmha", "orchestrator"):
        # A package's own line stands for its __init__.py.
        modules = (path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")
        sources |= {path.relative_to(ROOT).as_posix() for path in modules}
    assert sorted(sources - set(listed)) == []


def test_tree_reader() -> None:
    text = "```\nlsmha-sweep/\n  a.py    one  two\n  b/      dir\n    c.py\n    d/\n      e.py  x\n  f.py  y\n```\n"
    assert _readme_tree(text) == ["a.py", "b", "b/c.py", "b/d", "b/d/e.py", "f.py"]


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


def _readme_tree(readme: str) -> list[str]:
    """Paths in the README's file tree: a fenced block that starts with `lsmha-sweep/`, indented by two spaces a level.

    Each line is a name, and after two or more spaces what it is for; names of folders end with a slash.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    trees = [block for block in blocks if block.startswith("lsmha-sweep/")]
    assert len(trees) == 1, "README.md needs one fenced block that starts with lsmha-sweep/"
    folders: list[str] = []
    paths = []
    for line in trees[0].splitlines()[1:]:
        entry = re.match(r"((?:  )+)(\S+?)(/?)(?:  +.*)?$", line)
        assert entry, f"not `name  purpose`, indented by two spaces a level: {line!r}"
        indent, name, slash = entry.groups()
        level = len(indent) // 2 - 1
        assert level <= len(folders), f"indented too far: {line!r}"
        folders = folders[:level]
        paths.append(PurePosixPath(*folders, name).as_posix())
        if slash:
            folders.append(name)
    return paths


def _tracked_files() -> list[str]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for path in listing.stdout.split("\0") if path]
