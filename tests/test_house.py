"""The house itself: imports go down the stairs, nothing names this or that machine, `__all__` is what we say."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "attar"
STAIRS = [
    {"__main__"},
    {"cli"},
    {"recipes"},
    {"train", "evaluation", "curation", "export", "reports"},
    {"methods"},
    {"losses", "models", "data"},
    {"utils"},
    {"config", "errors", "types"},
]
EVERYWHERE = {"_version"}


def level(room: str) -> int:
    return next(number for number, step in enumerate(STAIRS) if room in step)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms a file imports, also inside functions and under TYPE_CHECKING."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module or ""]
            if node.module == "attar":
                modules = [f"attar.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {module.split(".")[1] for module in modules if module.startswith("attar.")}
    return rooms - EVERYWHERE


def violations(room: str, imported: set[str]) -> list[str]:
    found = [other for other in sorted(imported) if other != room and level(other) <= level(room)]
    bottom = STAIRS[-1]
    return [other for other in found if not (room in bottom and other == "errors")]  # everybody may raise


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "_version.py") or path.parent != PACKAGE
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_stairs(path: Path) -> None:
    wrong = violations(room_of(path), imported_rooms(path))
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}: up the stairs, or on the same step"


def test_the_walk_notices_an_import_up_the_stairs_and_sideways() -> None:
    assert violations("losses", {"methods"}) == ["methods"]
    assert violations("losses", {"models"}) == ["models"]
    assert violations("train", {"reports", "utils"}) == ["reports"]
    assert violations("methods", {"models", "losses", "utils", "types"}) == []


def test_modules_import_each_other_without_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = "attar." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:  # module level: what runs when it is imported
            if isinstance(node, ast.ImportFrom) and node.module:
                graph[name].add(node.module)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done or name not in graph:
            return
        for other in graph[name]:
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: nothing is tracked")
    return [ROOT / name for name in listed.split("\0") if name]


MACHINE = re.compile(
    r"index"
    + r"-url|://\S*/sim"
    + r"ple/|files\.python"
    + r"hosted|pypi\."
    + r"org/simple|(?<![\w.~])/(?:home|Users|root|work)/\w",
    re.I,
)


def test_no_tracked_file_names_a_package_index_or_a_home() -> None:
    found = []
    for path in tracked_files():
        if path.suffix in (".safetensors", ".png", ".jpg") or not path.is_file() or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_the_search_notices_what_it_looks_for() -> None:
    assert MACHINE.search("pip install --extra-index" + "-url somewhere")
    assert MACHINE.search("data = '/ho" + "me/someone/images'")
    assert not MACHINE.search("https://github.com/someone/thing, ~/images, /data/work")


def test_the_file_tree_names_every_module_and_no_other() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("## The file tree")[1].split("```")[1]
    named = {line.split()[0] for line in tree.splitlines() if line.strip() and line.split()[0].endswith(".py")}
    there = {path.name for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")}
    assert named == there


def test_public_names_are_there_and_documented() -> None:
    attar = importlib.import_module("attar")
    assert sorted(attar.__all__) == sorted(set(attar.__all__))
    assert set(attar.__all__) <= set(dir(attar))
    for name in attar.__all__:
        value = getattr(attar, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"attar.{name} has no docstring"


def test_every_public_function_and_class_has_a_docstring() -> None:
    bare = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not bare, "\n".join(bare)


@cache
def declared() -> tuple[set[str], set[str]]:
    """Packages that attar always needs, and those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=;]", line)[0].lower().replace("_", "-") for line in lines}

    return names(project["dependencies"]), names(
        [x for lines in project["optional-dependencies"].values() for x in lines]
    )


def third_party(tree: ast.AST, *, is_late: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules of others that are imported, and whether that is late: in a function that needs them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        given = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        given += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for module in {name.partition(".")[0] for name in given} - sys.stdlib_module_names - {"attar"}:
            yield module, is_late
        yield from third_party(node, is_late=is_late or isinstance(node, ast.FunctionDef | ast.Try))


BY_THEMSELVES = {"h5py"}  # one data set needs it, which names it


@cache
def package(module: str) -> str:
    """Whose module it is."""
    return packages_distributions().get(module, [module])[0].lower().replace("_", "-")


def undeclared(tree: ast.AST) -> set[str]:
    """What is imported and declared nowhere, or at once and declared as an extra alone."""
    core, extras = declared()
    found = {(package(module), is_late) for module, is_late in third_party(tree)}
    return {name for name, is_late in found if name not in (core | extras | BY_THEMSELVES if is_late else core)}


def test_what_is_imported_is_declared() -> None:
    missing = {str(path.relative_to(ROOT)): undeclared(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert not {path: names for path, names in missing.items() if names}


def test_an_import_that_is_not_declared_would_be_noticed() -> None:
    assert undeclared(ast.parse("import torch, pandas")) == {"pandas"}
    assert undeclared(ast.parse("import open_clip")) == {"open-clip-torch"}  # at once, and an extra
    assert undeclared(ast.parse("def f():\n    import open_clip, yaml")) == set()


def test_constraints_pin_versions_and_hold_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 20
    assert all(re.fullmatch(r"[\w.\-]+==[\w.\-+!]+", line) for line in lines if line and not line.startswith("#"))
