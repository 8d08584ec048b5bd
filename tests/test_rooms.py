"""Imports go downward only, and no room knows a room beside it."""

import ast
from pathlib import Path

import adamx

ROOT = Path(adamx.__file__).parent
# From the ground up: each entry is a floor; a module may import from floors below its own only.
FLOORS = [
    ["adamx.ground.numerics"],
    ["adamx.ground.tree"],
    ["adamx.ground.hyper"],
    ["adamx.ground.codec"],
    ["adamx.ground.part", "adamx.ground.stream"],
    ["adamx.ground.leaf"],
    ["adamx.ground.transform"],
    ["adamx.parts"],
    ["adamx.wrap.guard", "adamx.wrap.entry"],
    ["adamx.wrap"],
    ["adamx.family"],
    ["adamx.kernels.grid"],
    ["adamx.kernels"],
    ["adamx.diagnostics.metrics"],
    ["adamx.diagnostics.history", "adamx.diagnostics.stats"],
    ["adamx.diagnostics.thresholds"],
    ["adamx.diagnostics.reading"],
    ["adamx.diagnostics.rules"],
    ["adamx.diagnostics"],
    ["adamx.diagnostics.cli"],
    ["adamx"],
]


def name_of(path):
    return ".".join(("adamx", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def floor_of(module):
    fits = [(len(room), i) for i, rooms in enumerate(FLOORS) for room in rooms if f"{module}.".startswith(f"{room}.")]
    return max(fits)[1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "adamx")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adamx":
            for a in node.names:
                inner = ROOT.joinpath(*node.module.split(".")[1:], a.name)
                yield f"{node.module}.{a.name}" if inner.with_suffix(".py").exists() or inner.is_dir() else node.module


def test_imports_go_downward_only():
    seen = 0
    for path in ROOT.rglob("*.py"):
        mine = name_of(path)
        for other in imports(path):
            seen += 1
            assert floor_of(other) < floor_of(mine), f"{mine} imports {other}"
    assert seen > 50


def test_a_family_file_is_small_and_holds_no_mathematics():
    for path in (ROOT / "family").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert not any(isinstance(n, ast.Import) for n in ast.walk(tree)), f"{path.name} imports a numeric library"
        assert not any(
            isinstance(n, ast.BinOp) and isinstance(n.op, (ast.Mult, ast.Div, ast.Pow)) for n in ast.walk(tree)
        )


def test_family_files_average_at_most_45_lines():
    lines = [len(path.read_text().splitlines()) for path in (ROOT / "family").glob("[a-z]*.py")]
    assert sum(lines) / len(lines) <= 45


def test_public_names_are_exported_as_themselves():
    for node in ast.parse((ROOT / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("adamx"):
            assert all(a.asname == a.name for a in node.names)
    assert adamx.__version__
