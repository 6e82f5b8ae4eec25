"""How fast `workbench.sweep` runs short alignments, beside a loop over papermill.

    python tests/benchmarks/bench_sweep.py [--runs 16] [--jobs 2]

Each run is ``notebooks/4_align.ipynb`` with the embedded model, one step of SIMBA and another seed.
Both start with empty caches, and in both every run has a folder and an MLflow store of its own,
copied from an empty one. The loop is what papermill's users are told to write.

*overhead* is what the sweep adds to a run beyond papermill's own duration of it: processes, imports
in these, locks, results, MLflow. The same sweep is then called again, in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["WORKBENCH_PROGRESS"] = "text"

import nbformat

import workbench
from workbench.experiments.parameters import find_notebook

# Others are imported where they are used: each process of a sweep imports the script that calls it,
# which in notebooks and on the command line is none.

POINT = {"max_steps": 1}


def fresh_caches(folder: Path) -> None:
    os.environ["WORKBENCH_CACHE"] = str(folder / "cache")
    os.environ["DSPY_CACHEDIR"] = str(folder / "cache" / "dspy")


def loop(folder: Path, runs: int, ready: Path) -> float:
    """The runs one after the other by papermill; ``ready`` is an empty store to copy."""
    import papermill

    fresh_caches(folder)
    source = find_notebook("4_align")
    # papermill runs in the current folder, where the default data would not be found.
    data = str(source.parent.parent / "data" / "shop_answers.csv")
    start = time.perf_counter()
    for seed in range(runs):
        output = folder / str(seed)
        output.mkdir(parents=True)
        store = f"sqlite:///{output}/mlflow.db"
        shutil.copy(ready, output / "mlflow.db")
        given = {**POINT, "seed": seed, "data": data, "output_dir": str(output)}
        papermill.execute_notebook(
            str(source), str(output / "4_align.ipynb"), {**given, "tracking_uri": store},
            kernel_name="python3", progress_bar=False,
        )  # fmt: skip
    return time.perf_counter() - start


def duration(folder: str) -> float:
    executed = nbformat.read(Path(folder) / "4_align.ipynb", as_version=4)
    return float(executed.metadata.papermill.duration)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    import mlflow
    import pandas as pd

    from workbench.store.database import prepare_database

    grid = {**POINT, "seed": range(options.runs)}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        mlflow.create_experiment("bench", artifact_location=(root / "artifacts").as_uri())
        mlflow.set_experiment("bench")
        ready = root / "ready.db"
        prepare_database(f"sqlite:///{ready}")

        fresh_caches(root / "swept")
        begun = time.perf_counter()
        table = workbench.sweep("4_align", grid, jobs=options.jobs, output=root, progress=False)
        swept = time.perf_counter() - begun
        assert (table["status"] == "complete").all(), table["error"].tolist()
        begun = time.perf_counter()
        workbench.sweep("4_align", grid, jobs=options.jobs, output=root, progress=False)
        again = time.perf_counter() - begun
        own = sum(map(duration, table["folder"]))
        overhead = (options.jobs * swept - own) / options.runs
        looped = loop(root / "loop", options.runs, ready)
    rows = [
        ("papermill in a loop", looped),
        (f"workbench.sweep, {options.jobs} jobs", swept),
        ("the same again", again),
    ]
    found = pd.DataFrame(rows, columns=["what", "seconds"])
    found["a run"] = found["seconds"] / options.runs
    found["sweep is times"] = found["seconds"] / swept
    print(found.to_string(index=False, float_format=lambda number: f"{number:.2f}"))
    print(f"overhead of the sweep: {overhead:.2f} s a run")
    print(f"{os.cpu_count()} cores, {options.runs} runs, embedded model")
    return 0 if looped >= 1.8 * swept and overhead < 0.5 and again < 5 else 1


if __name__ == "__main__":
    sys.exit(main())
