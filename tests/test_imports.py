"""The shape of the package: imports point down, and heavy things are loaded when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent

# From the bottom up. A module imports from its own layer and from those below it.
LAYERS = {
    "errors": ["errors"],
    "scale": ["scale", "progress"],
    "level 1": [
        "assignment", "budget", "cache", "claims", "credentials", "dataset", "faults", "feedback",
        "ingest", "judge", "labels", "offline", "prices", "receipt", "rows", "rubrics", "schemas",
        "store", "tables", "tape", "throttle", "traces", "transaction", "transport", "workers",
    ],
    "assessment": ["question", "replay", "calls", "assessment"],
    "pairing": ["consensus", "verdicts", "splits", "pairing", "adjudication"],
    "metrics": [
        "coefficients", "coding", "rendering", "annotators", "comparison", "concordance",
        "correction", "metrics", "sampling",
    ],
    "labelling": [
        "actions", "agenda", "answers", "asking", "contents", "deciding", "draws", "evidence",
        "labelling", "ordering", "protocol", "rereading", "reviews", "saving", "share", "showing",
        "soon", "standing", "tally", "writing",
    ],
    "simba": [
        "candidate", "rulelists", "reflection", "grouping", "moves", "scoreboard", "optimised",
        "pruning", "ascent", "crossfit", "checkpoint", "forecast", "labelled", "simba",
    ],
    "alignment": [
        "watch", "ancestry", "looks", "preflight", "gate", "metering", "foreign", "proposal",
        "harness", "logbook", "alignment", "lineup",
    ],
    "registry": ["record", "registry"],
    "workspace": ["workspace"],
    "edge": [
        "parameters", "background", "console", "contest", "execution", "experiments",
        "leaderboard", "plots", "report", "panel",
    ],
    "command line": ["cli"],
}  # fmt: skip
RANK = {module: rank for rank, layer in enumerate(LAYERS.values()) for module in layer}

# Where a module is a layer of its own kind: it may import these and nothing else of ours.
ONLY = {
    "errors": set(),
    "scale": {"errors"},
    "progress": set(),
    "coefficients": set(),
    "throttle": set(),
    "workers": set(),
    "faults": set(),
    "cli": {"credentials", "errors", "experiments", "parameters"},
}

# Where a third-party package belongs; packages that are not named are free.
HOMES = {
    "anywidget": {"panel"},
    "click": {"cli"},
    "diskcache": {"cache"},
    "dspy": {"foreign", "simba", "reflection"},
    "ipywidgets": {"panel"},
    "jinja2": {"report"},
    "jupyter_client": {"execution"},
    "litellm": {"offline", "prices", "transport", "calls"},
    "matplotlib": {"plots"},
    "nbclient": {"execution"},
    "nbformat": {"execution", "parameters"},
    "opentelemetry": {"ingest"},
    "papermill": {"execution"},
    "platformdirs": {"cache"},
    "pyarrow": {"tables"},
    "scipy": {"coefficients", "concordance", "grouping", "sampling"},
    "sklearn": {"coefficients", "concordance", "ordering"},
    "statsmodels": {"coefficients"},
}

# What takes a second or more to import is loaded when it is used.
NEVER_AT_THE_TOP = {"dspy", "litellm", "matplotlib", "papermill", "scipy", "sklearn", "statsmodels"}

HEAVY = ["mlflow", "dspy", "pandas", "matplotlib", "ipywidgets", "litellm"]


class Import(NamedTuple):
    """``module`` imports ``name``; ``top`` when its own import does, ``typing`` for types only."""

    module: str
    name: str
    top: bool
    typing: bool


def modules() -> list[str]:
    files = [p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__"]
    return sorted([*files, *(p.parent.name for p in PACKAGE.glob("*/__init__.py"))])


def imports(module: str) -> Iterator[Import]:
    single = PACKAGE / f"{module}.py"
    for path in [single] if single.exists() else sorted((PACKAGE / module).rglob("*.py")):
        # The inner modules of a sub-package are loaded when it needs them.
        top = path.parent == PACKAGE or path.stem == "__init__"
        yield from _imports(module, ast.parse(path.read_text("utf-8")), top=top, typing=False)


def _imports(module: str, node: ast.AST, *, top: bool, typing: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, alias.name, top, typing)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} imports relatively"
        for alias in node.names:
            yield Import(module, f"{node.module}.{alias.name}", top, typing)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.body:
            yield from _imports(module, child, top=top, typing=True)
        for child in node.orelse:
            yield from _imports(module, child, top=top, typing=typing)
    else:
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _imports(module, child, top=top and not inside, typing=typing)


ALL = [each for module in modules() for each in imports(module)]


def own(each: Import) -> str | None:
    """The module of the package that is imported, None for those of others and for itself."""
    parts = each.name.split(".")
    if parts[0] != "workbench" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in RANK and parts[1] != each.module else None


def test_each_module_has_its_layer() -> None:
    assert [module for module in modules() if module not in RANK] == []


def test_imports_point_down() -> None:
    """At run time; a type may be named from above."""
    up = [
        f"{each.module} imports {own(each)}"
        for each in ALL
        if (name := own(each)) and RANK[name] > RANK.get(each.module, 0) and not each.typing
    ]
    assert up == []


@pytest.mark.parametrize("module", sorted(ONLY))
def test_some_modules_stand_on_little(module: str) -> None:
    assert {name for each in ALL if each.module == module and (name := own(each))} <= ONLY[module]


def test_nothing_imports_the_edge_but_the_edge() -> None:
    edge = {*LAYERS["edge"], *LAYERS["command line"]}
    assert [e for e in ALL if own(e) in edge and e.module not in edge] == []
    assert [e for e in ALL if own(e) == "cli"] == []


def test_no_two_modules_need_each_other() -> None:
    needs = {m: {n for e in ALL if e.module == m and not e.typing and (n := own(e))} for m in RANK}
    done: set[str] = set()
    while ready := {m for m in needs if m not in done and needs[m] <= done}:
        done |= ready
    assert set(needs) - done == set()


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_third_party_package_is_imported_only_where_it_belongs(package: str) -> None:
    users = {e.module for e in ALL if e.name.split(".")[0] == package and not e.typing}
    assert users <= HOMES[package]


def test_what_is_slow_to_import_is_imported_when_used() -> None:
    slow = [e for e in ALL if e.top and not e.typing and e.name.split(".")[0] in NEVER_AT_THE_TOP]
    assert slow == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, workbench; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert list(workbench.__all__) == sorted(workbench.__all__)
    missing = []
    for name in workbench.__all__:
        try:
            getattr(workbench, name)
        except Exception as error:
            missing.append(f"{name}: {error!r}")
    assert missing == []


def test_the_names_that_notebooks_use_are_public() -> None:
    """The names that README, notebooks and outside checks rely on stay."""
    promised = {
        "DEFAULT_MODEL", "SIMBA", "align", "agreement", "alignment_improvement",
        "annotator_agreement", "assess", "compare", "history", "import_traces", "load_judge",
        "log_labels", "log_verdicts", "make_judge", "pair", "plot_before_after",
        "plot_confusion", "register",
    }  # fmt: skip
    assert promised <= set(workbench.__all__)


def test_no_module_hides_a_function_and_none_is_a_drawer() -> None:
    """Importing ``workbench.align`` as a module would hide the function of that name."""
    assert set(modules()) & set(workbench.__all__) == set()
    assert not {"utils", "util", "helpers", "common", "misc"} & set(modules())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = workbench.nothing
