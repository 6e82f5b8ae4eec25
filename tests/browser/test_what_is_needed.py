"""What the tests in a browser need is there in CI, or they fail: none is passed over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent


NO_BROWSER = """
import pytest
@pytest.fixture(scope="package")
def browser():
    return None
"""


def outcome(folder: Path, fixture: str, before: str = "", **environment: str) -> tuple[int, str]:
    """How a test that takes a fixture of this folder ends, and what is said of it."""
    (folder / "test_one.py").write_text(f"{before}\ndef test_one({fixture}):\n    pass\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = [*filter(None, [environment.pop("PYTHONPATH", "")]), str(_HERE)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "conftest", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_without_a_browser_tests_fail_in_ci(tmp_path: Path) -> None:
    """They name what is missing, and elsewhere they are skipped with the same words."""
    nowhere = str(tmp_path / "nowhere")
    code, told = outcome(tmp_path, "browser", CI="true", WORKBENCH_TEST_BROWSER=nowhere)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 error" in told
    assert "skipped" not in told
    assert "need Chromium" in told
    code, told = outcome(tmp_path, "browser", CI="", WORKBENCH_TEST_BROWSER=nowhere)
    assert code == pytest.ExitCode.OK
    assert "1 skipped" in told
    assert "need Chromium" in told


def test_without_a_browser_on_the_path_tests_fail_in_ci(tmp_path: Path) -> None:
    """Also where none was named."""
    code, told = outcome(tmp_path, "browser", CI="true", WORKBENCH_TEST_BROWSER="", PATH="/nowhere")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "need Chromium" in told


@pytest.mark.parametrize(("host", "module"), [("lab", "jupyterlab"), ("notebook_7", "notebook")])
def test_without_jupyter_tests_fail(tmp_path: Path, host: str, module: str) -> None:
    """A host that does not start is an error, with what it has said."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / f"{module}.py").write_text("raise ImportError('it is hidden')\n")
    hidden = str(tmp_path / "hidden")
    code, told = outcome(tmp_path, host, NO_BROWSER, CI="true", PYTHONPATH=hidden)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 error" in told
    assert "skipped" not in told
    assert "it is hidden" in told


def test_the_run_of_ci_says_that_it_is_one() -> None:
    """Whatever starts it: what is missing there is a failure."""
    script = (_HERE.parents[1] / ".ci" / "run").read_text()
    assert re.search(r"^export (.* )?CI=true\b", script, re.MULTILINE)
    assert script.index("export CI=true") < script.index("\nmake test")
