"""Optimizers beside each other on a real model and on labelled data, over several seeds.

    make bench-model BASE_URL=http://localhost:8000/v1 MODEL=openai:/my-model
    make bench-model BASE_URL=... MODEL=... DATA=answers.csv ARGS="-p inputs question ..."

It runs ``notebooks/5_compare.ipynb`` once a seed and puts the tables together. Any server with the
API of OpenAI will do. Answers are cached, and a seed that is done with the same parameters and data
is not run again, so that the same command goes on after an interrupt. Each seed draws its own rows,
split and examples. The original judge, the majority label and few-shot are always there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.experiments.notebook import run_notebook
from workbench.experiments.parameters import (
    find_notebook,
    notebook_parameters,
    parse_parameters,
)
from workbench.store.tables import digest

OPTIMIZERS = "workbench SIMBA, MLflow GEPA"
EACH = ["accuracy", "low", "high", "kappa", "kappa low", "kappa high", "n", "p", "status"]
SUMS = ["judge calls", "reflection calls", "tokens", "seconds", "later tokens"]


def planned(seed: int, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The folder of one seed, another one for other parameters or data, and the parameters."""
    named = ("model", "base_url", "data", "embedding_model", "optimizers")
    parameters = {"seed": seed, **{name: getattr(options, name) for name in named}}
    if options.optimizers is None:
        memalign = ", MLflow MemAlign" if options.embedding_model else ""
        parameters["optimizers"] = OPTIMIZERS + memalign
    texts = [(name, str(value)) for name, value in parameters.items() if value is not None]
    known = notebook_parameters(find_notebook("5_compare"))
    given = parse_parameters(known, [*texts, *options.p])
    data = Path(given["data"]).read_bytes() if "data" in given else b""
    return options.output / f"seed-{seed}-{digest([given, data])[:8]}", given


def run(seed: int, options: argparse.Namespace) -> pd.DataFrame:
    """The comparison of one seed: from its folder if it is there, else by a run."""
    folder, given = planned(seed, options)
    table = folder / "comparison.csv"
    if not table.exists():
        run_notebook("5_compare", parameters=given, output=folder)
    return pd.read_csv(table).assign(seed=seed)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a judge: mean accuracy and kappa with the seeds' range, and the mean cost."""
    judges = rows.groupby("judge", sort=False)
    table = pd.DataFrame({"seeds": judges["kappa"].count(), "held out": judges["n"].mean().round()})
    for name in ("accuracy", "kappa"):
        means = judges[name].agg(["mean", "min", "max"])
        table[name] = means["mean"]
        spans = zip(means["min"], means["max"], strict=True)
        table[f"{name}, seeds"] = [
            f"{low:.2f} to {high:.2f}" if low == low else "" for low, high in spans
        ]
    statuses = judges["status"].agg(lambda one: ", ".join(dict.fromkeys(one)))
    return table.join(judges[SUMS].mean().round()).join(statuses)


def missing(rows: pd.DataFrame) -> list[str]:
    """Say which judges have no figures on some held-out items, or on none, and why."""
    n = rows["n"].fillna(0)
    lost = rows[n < n.groupby(rows["seed"]).transform("max")]
    return [f"{row.judge}, seed {row.seed}: {row.reason}" for row in lost.itertuples()]


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Kappa of each judge: a point a seed with its interval, and the mean."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(rows["judge"]))
    figure, ax = plt.subplots(figsize=(7.6, 1.2 + 0.55 * len(names)), layout="constrained")
    seeds = sorted(rows["seed"].unique())
    for place, name in enumerate(names):
        of_judge = rows[rows["judge"] == name]
        for row in of_judge.itertuples(index=False):
            at = place + (seeds.index(row.seed) - (len(seeds) - 1) / 2) * 0.18
            low, high = (
                row[rows.columns.get_loc("kappa low")],
                row[rows.columns.get_loc("kappa high")],
            )
            ax.plot([low, high], [at, at], color="0.75", lw=1.5, zorder=1)
            ax.plot(row.kappa, at, "o", color="tab:blue", ms=5)
        mean = of_judge["kappa"].mean()
        ax.plot([mean, mean], [place - 0.35, place + 0.35], color="black", lw=2)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="0.6", lw=0.8)
    ax.set_xlabel(
        "Cohen's kappa on held-out items: a point a seed with its 95 % interval; bar: mean"
    )
    figure.savefig(path, dpi=150)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=os.environ.get("WORKBENCH_MODEL"),
                        help="URI such as openai:/my-model; default: WORKBENCH_MODEL where that is "
                        "set, else the embedded model")  # fmt: skip
    parser.add_argument("--base-url", help="root of an OpenAI-compatible server")
    parser.add_argument("--data", help="a labelled file; the sample by default")
    parser.add_argument("--embedding-model", help="URI of MemAlign's, reached at the same server")
    parser.add_argument("--optimizers",
                        help=f"default: {OPTIMIZERS}, and MLflow MemAlign with --embedding-model; "
                        "MLflow SIMBA, which makes some 1,400 calls a seed, only if named here. "
                        "original, majority label and few-shot are always there")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("output/bench-model"))
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a further parameter of notebooks/5_compare.ipynb, such as "
                        "reflection_model")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.base_url and not options.model:
        parser.error("--base-url needs --model: without one the embedded model would be compared")
    return options


def main() -> int:
    options = parsed()
    os.environ.setdefault("OPENAI_API_KEY", "none")  # a local server that asks for none
    rows = pd.concat([run(seed, options) for seed in range(options.seeds)], ignore_index=True)
    rows.to_csv(options.output / "all.csv", index=False)
    draw(rows, options.output / "kappa.png")
    model = options.model or "the embedded model, which is no language model"
    print(f"\n{model} on {options.data or 'the sample data'}, {options.seeds} seeds\n")
    for table in (summary(rows), rows.set_index(["seed", "judge"])[EACH]):
        print(table.to_string(float_format="{:.3f}".format, na_rep=""), end="\n\n")
    for told in missing(rows):
        print(f"! {told}")
    print(f"Picture: {options.output / 'kappa.png'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (WorkbenchError, OSError) as error:
        sys.exit(f"error: {error}")
