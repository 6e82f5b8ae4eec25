"""Recordings of runs with a real model repeat what the guide says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import active_store, run_here, summary

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "data" / "recordings").iterdir())
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.fixture(scope="module", params=RECORDINGS, ids=lambda path: path.name)
def replayed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """A recording, and the output of its replay by a user who has neither model nor key."""
    folder = tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patch, active_store(f"sqlite:///{folder}/unused.db"):
        for name in ("WORKBENCH_MODEL", "MLFLOW_TRACKING_URI", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("WORKBENCH_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        run_here(f"workbench run --replay {request.param} --output out")
        yield request.param, folder / "out"


def test_a_replay_gives_the_figures_that_are_stated(replayed: tuple[Path, Path]) -> None:
    """Row by row: items, accuracy and kappa before and after, and the status."""
    recording, output = replayed
    found = summary(output)
    comparison = found["comparison"]
    figures = [
        f"{comparison[when]['figures'][name]['value']:.3f}"
        for name in ("accuracy", "kappa")
        for when in ("before", "after")
    ]
    (row,) = re.findall(rf"^\| `{recording.name}` \|.*$", RESULTS, re.MULTILINE)
    stated = [cell.strip() for cell in row.split("|")[2:-1]]
    assert stated == [str(comparison["n"]), *figures, found["status"]]
    assert (output / "report.html").stat().st_size > 0
    assert recording.stat().st_size < 1_000_000
