"""The public names, and what `import workbench` loads. Layers are import-linter's contracts."""

from __future__ import annotations

import subprocess
import sys

import pytest

import workbench

HEAVY = ["mlflow", "dspy", "pandas", "matplotlib", "ipywidgets", "litellm"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Nor does what runs notebooks build a grammar of IRIs, which are checked all the same."""
    code = (
        f"import sys, workbench; print([m for m in {HEAVY} if m in sys.modules])\n"
        "import workbench.experiments.execution; print('rfc3987_syntax' in sys.modules)\n"
        "from jsonschema import FormatChecker\n"
        "print([FormatChecker().conforms(iri, 'iri') for iri in ('http://exämple.org', 'a b')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False", "[True, False]"]


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
        "annotator_agreement", "assess", "compare", "diff", "history", "import_traces",
        "load_judge", "log_labels", "log_verdicts", "make_judge", "pair", "plot_before_after",
        "plot_confusion", "register", "roll_back",
    }  # fmt: skip
    assert promised <= set(workbench.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = workbench.nothing
