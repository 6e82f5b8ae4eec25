"""Where the browser of the tests is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

_NEEDED = (
    "The tests in a browser need Chromium: apt-get install chromium, or name another one by the "
    "environment variable WORKBENCH_TEST_BROWSER."
)


def browser_path(environment: Mapping[str, str]) -> str:
    """Where Chromium is. Without one tests skip, but in CI they fail."""
    named = environment.get("WORKBENCH_TEST_BROWSER")
    folders = environment.get("PATH", "")
    path = named or shutil.which("chromium", path=folders)
    path = path or shutil.which("chromium-browser", path=folders)
    if path is None or not Path(path).exists():
        if environment.get("CI"):
            pytest.fail(_NEEDED)
        pytest.skip(_NEEDED)
    return path
