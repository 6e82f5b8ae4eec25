"""Recordings of runs with a real model repeat what the guide says of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image
from running import run_here, summary

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "data" / "recordings").iterdir())
PICTURES = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_replay_gives_the_figures_that_are_stated(recording: Path, folder: Path) -> None:
    """Without model and key: items, accuracy and kappa before and after, and the status."""
    (folder / "data").symlink_to(ROOT / "data")  # files are named from the project's folder
    output = run_here(f"workbench run --replay '{recording}' --output out")
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
    if recording.name in PICTURES["RECORDING"]:
        said = Image.open(PICTURES["PICTURE"]).info["Description"]
        hint = "the figures have changed: draw the picture anew with `python docs/pictures.py`"
        assert said == PICTURES["description"](found), hint
