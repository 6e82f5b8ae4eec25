"""Fixtures of the tests in a browser: Chromium, JupyterLab and Notebook 7, started once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hosts import Desk, Host
    from playwright.sync_api import Browser


# Playwright keeps an event loop in this thread: it must be gone before other tests need one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, which finds no host but loopback."""
    from browser_path import browser_path

    path = browser_path(os.environ)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                # Processes kept ready for pages that nobody opens would slow the others down.
                "--disable-features=SpareRendererForSitePerProcess",
                "--process-per-site",
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


@pytest.fixture(scope="package")
def desk(browser: Browser, lab: Host) -> Iterator[Desk]:
    """A notebook in JupyterLab with one kernel for all tests that leave it running."""
    from hosts import Desk

    with lab.notebook(browser, [""] * 4) as notebook:
        yield Desk(notebook)
