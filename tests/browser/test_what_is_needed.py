"""What the tests in a browser need is there in CI, or they fail: none is passed over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_path import browser_path
from hosts import running

_HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("where", [{"WORKBENCH_TEST_BROWSER": "/nowhere"}, {"PATH": "/nowhere"}])
def test_without_a_browser_tests_fail_in_ci(where: dict[str, str]) -> None:
    """They name what is missing, and elsewhere they are skipped with the same words."""
    with pytest.raises(pytest.fail.Exception, match="need Chromium"):
        browser_path({**where, "CI": "true"})
    with pytest.raises(pytest.skip.Exception, match="need Chromium"):
        browser_path(where)


def test_without_jupyter_tests_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not start is an error, with what it has said."""
    (tmp_path / "jupyterlab.py").write_text("raise ImportError('it is hidden')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AssertionError, match="it is hidden"), running("lab", tmp_path / "lab"):
        pass


def test_the_run_of_ci_says_that_it_is_one() -> None:
    """Whatever starts it: what is missing there is a failure."""
    script = (_HERE.parents[1] / ".ci" / "run").read_text()
    assert re.search(r"^export (.* )?CI=true\b", script, re.MULTILINE)
    assert script.index("export CI=true") < script.index("\nmake test")
