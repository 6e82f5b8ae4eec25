"""Fixtures of the tests in a browser: Chromium, JupyterLab and Notebook 7, started once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hosts import Host
    from playwright.sync_api import Browser

_NEEDED = (
    "The tests in a browser need Chromium: apt-get install chromium, or name another one by the "
    "environment variable WORKBENCH_TEST_BROWSER."
)


# Playwright keeps an event loop in this thread: it must be gone before other tests need one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, which finds no host but loopback. Without one tests skip, but in CI they fail."""
    named = os.environ.get("WORKBENCH_TEST_BROWSER")
    path = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None or not Path(path).exists():
        if os.environ.get("CI"):
            pytest.fail(_NEEDED)
        pytest.skip(_NEEDED)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """JupyterLab."""
    from hosts import running

    with running("lab", tmp_path_factory.mktemp("lab")) as host:
        yield host


@pytest.fixture(scope="package")
def notebook_7(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Notebook 7."""
    from hosts import running

    with running("notebook", tmp_path_factory.mktemp("notebook")) as host:
        yield host


@pytest.fixture(scope="package", params=["lab", "notebook_7"])
def host(request: pytest.FixtureRequest) -> Host:
    """JupyterLab, then Notebook 7: a test that takes it holds in both."""
    found: Host = request.getfixturevalue(request.param)
    return found
