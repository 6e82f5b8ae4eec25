"""Draw the picture of README anew: python docs/pictures.py

It replays a recorded run of a real model. The ``Description`` of the file holds the figures that it
shows; a test compares them with those of a replay.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parent / "img" / "before_after.png"
RECORDING = "data/recordings/refusals-qwen2.5-coder-1.5b.jsonl.gz"


def description(summary: dict) -> str:
    """Return what the picture of a run shows, from the run's summary."""
    figures = [summary["comparison"][when]["figures"] for when in ("before", "after")]
    before, after = (f"{each['accuracy']['value']:.3f}" for each in figures)
    return (
        f"{summary['comparison']['n']} held-out pairs, accuracy {before} before and {after} after, "
        f"model {summary['model']}, seed {summary['seed']}"
    )


def main() -> None:
    import nbformat
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from workbench.experiments.notebook import run_notebook

    for variable in ("WORKBENCH_MODEL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = f"{folder}/cache"
        os.chdir(PICTURE.parents[2])  # where the recording's data are
        ran = run_notebook("4_align", output=f"{folder}/out", replay=RECORDING)
        cells = nbformat.read(ran.notebook, as_version=4).cells
    (cell,) = [c for c in cells if "plot_before_after" in c.source]
    picture = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    metadata = PngInfo()
    metadata.add_text("Description", description(ran.summary))
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((980, 980))  # the width of a page
    image = image.quantize(128)
    image.save(PICTURE, pnginfo=metadata, optimize=True)
    print(f"{PICTURE}: {description(ran.summary)}")


if __name__ == "__main__":
    main()
