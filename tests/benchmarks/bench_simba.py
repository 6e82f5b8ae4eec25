"""Optimizers of judges beside each other, on a simulated model with a hidden rubric.

    python tests/benchmarks/bench_simba.py                     # all, about 45 minutes
    python tests/benchmarks/bench_simba.py --quick             # N = 50, nothing fails: 5 minutes
    python tests/benchmarks/bench_simba.py --n 50 --judges systematic --optimizers workbench

Each optimizer gets the same judge and the same N labelled traces by MLflow's own call,
``judge.align(traces, optimizer)``, with its defaults; the judge that it returns is scored on
200 other items. Nothing is known beforehand: each run is a process of its own with a fresh
MLflow store, answer cache and dspy cache. The clock starts after imports and one call of each
kind have been made. The simulation counts the requests while learning, failed ones included;
scoring is done without latency and failures and is not counted. *Original*, *rubric told* (the
judge with the hidden rubric in its instructions: what can be reached) and *few-shot* (the first
two items of each label, with rationales, in the instructions) learn nothing.

The model is a simulation, told in `simulation`: figures say how an optimizer spends its calls
and what it makes of evidence, and nothing about a language model.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from simulation import RUBRIC, Item, Simulation, items

NAME = "good_reply"
INSTRUCTIONS = (
    "Is {{ outputs }} a good reply of our support to the customer's message in {{ inputs }}? "
    "Answer yes or no"
)
MODEL = "openai:/simulated"
OPTIMIZERS = ("mlflow-simba", "gepa", "memalign", "few-shot", "workbench")
HELD_OUT = 200
EXAMPLES = 4


# -- one run, in a process of its own ---------------------------------------------------------


def run_one(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Align by one optimizer and score what it returns."""
    # Optimizers write bars and warnings; the figures are this process's only output.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return _run_one(options, _Remote(options.one))


class _Remote(Simulation):
    """The simulation that the parent process has started."""

    def __init__(self, port: int) -> None:
        self.port = port


def _run_one(options: argparse.Namespace, server: Simulation) -> list[dict[str, Any]]:
    import mlflow
    import pandas as pd

    import workbench

    mlflow.set_experiment("benchmark")
    labelled = items(options.n, seed=options.seed)
    table = pd.DataFrame([vars(item) for item in labelled])
    imported = workbench.import_traces(
        table,
        inputs={"message": "question"},
        outputs="answer",
        labels={"ana": ("label", "rationale")},
        label_name=NAME,
        progress=False,
    )
    by_id = {trace.info.trace_id: trace for trace in mlflow.search_traces(return_type="list")}
    traces = [by_id[trace_id] for trace_id in imported.trace_ids]
    judge = _judge(INSTRUCTIONS)
    if not options.cold:
        _warm_up(judge)
    if options.optimizers == ["few-shot"]:
        told = "\n".join([INSTRUCTIONS + ".", *(f"- {rule.text(0)}" for rule in RUBRIC)])
        rows = [("original", judge), ("rubric told", _judge(told))]
        rows.append(("few-shot", _judge(_few_shot(labelled))))
        return [{"optimizer": name, **_scored(one, server)} for name, one in rows]

    server.control(latency=options.latency, failures=options.failures)
    started = time.perf_counter()
    optimizer = _optimizer(options)
    try:
        aligned = judge.align(traces, optimizer)
    except Exception as error:
        learned = {**_spent(server, started), "note": f"{type(error).__name__}: {error}"[:300]}
        return [{"optimizer": options.optimizers[0], **learned}]
    row = {"optimizer": options.optimizers[0], **_spent(server, started)}
    row |= _scored(aligned, server)
    return [row]


def _judge(instructions: str) -> Any:
    import workbench

    return workbench.make_judge(
        NAME, instructions, model=MODEL, feedback_value_type=Literal["yes", "no"]
    )


def _warm_up(judge: Any) -> None:
    """Load what is loaded on first use, so that no optimizer pays for it."""
    import dspy
    from mlflow.genai.judges import optimizers  # noqa: F401

    judge(inputs={"message": "warm"}, outputs="up")
    dspy.LM(MODEL.replace(":/", "/"), cache=False)("warm up")
    dspy.Embedder("openai/simulated-embedding")(["warm up"])


def _optimizer(options: argparse.Namespace) -> Any:
    from mlflow.genai.judges import optimizers

    import workbench

    match options.optimizers[0]:
        case "mlflow-simba":
            return optimizers.SIMBAAlignmentOptimizer(model=MODEL)
        case "gepa":
            return optimizers.GEPAAlignmentOptimizer(model=MODEL)
        case "memalign":
            return optimizers.MemAlignOptimizer(
                reflection_lm=MODEL, embedding_model="openai:/simulated-embedding"
            )
        case _:
            return workbench.SIMBA(progress=False)


def _few_shot(labelled: Sequence[Item]) -> str:
    """The instructions with the first items of each label as worked examples."""
    each = EXAMPLES // 2
    shown = [i for label in ("yes", "no") for i in [j for j in labelled if j.label == label][:each]]
    blocks = [
        f"inputs: {json.dumps({'message': item.question})}\noutputs: {json.dumps(item.answer)}\n"
        f"rationale: {item.rationale}\nresult: {item.label}"
        for item in shown
    ]
    return "\n\n".join([INSTRUCTIONS + ".", "Items that people rated:", *blocks])


def _spent(server: Simulation, started: float) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    spent = server.stats()
    return {
        "judge calls": spent["judge"],
        "reflections": spent["reflection"],
        "embeddings": spent["embedding"],
        "failed": spent["failed"],
        "other": spent["other"],
        "seconds": seconds,
    }


def _scored(judge: Any, server: Simulation) -> dict[str, Any]:
    """Accuracy and kappa on held-out items, and what one judgement more costs."""
    held_out = items(HELD_OUT, seed=10_000)

    def verdict(item: Item) -> str:
        return str(judge(inputs={"message": item.question}, outputs=item.answer).value)

    server.control(latency=0.0, failures=0.0)
    found = [verdict(held_out[0])]
    later = server.stats()
    with ThreadPoolExecutor(8) as pool:
        found += pool.map(verdict, held_out[1:])
    pairs = [(value, item.label) for value, item in zip(found, held_out, strict=True)]
    agreed = sum(value == label for value, label in pairs) / HELD_OUT
    yes = [sum(one == "yes" for one in side) / HELD_OUT for side in zip(*pairs, strict=True)]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return {
        "accuracy": agreed,
        "kappa": (agreed - chance) / (1 - chance) if chance < 1 else float("nan"),
        "calls later": later["judge"] + later["reflection"] + later["embedding"],
        "words later": later["words"],
    }


# -- all runs ---------------------------------------------------------------------------------


def measure(options: argparse.Namespace, **chosen: Any) -> list[dict[str, Any]]:
    """Run one optimizer once in a process of its own, ended by its id when it takes too long."""
    asked = argparse.Namespace(**{**vars(options), **chosen})
    with (
        tempfile.TemporaryDirectory() as folder,
        Simulation(judge=asked.judges[0], seed=asked.seed) as sim,
    ):
        environment = {
            **os.environ,
            "OPENAI_API_KEY": "sk-simulated",
            "OPENAI_API_BASE": sim.url,
            "OPENAI_BASE_URL": sim.url,
            "WORKBENCH_CACHE": f"{folder}/answers",
            "DSPY_CACHEDIR": f"{folder}/dspy",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "TQDM_DISABLE": "1",
        }
        command = [sys.executable, __file__, "--one", str(sim.port), *["--cold"] * asked.cold]
        for name in ("n", "latency", "judges", "failures", "optimizers", "seed"):
            value = getattr(asked, name)
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        worker = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            told, errors = worker.communicate(timeout=asked.limit)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
            rows = [{"optimizer": asked.optimizers[0], "note": f"ended after {asked.limit:.0f} s"}]
        else:
            rows = (
                json.loads(told.splitlines()[-1])
                if worker.returncode == 0
                else [{"optimizer": asked.optimizers[0], "note": errors.strip()[-300:]}]
            )
    common = {"judge": asked.judges[0], "n": asked.n[0], "failures": asked.failures[0]}
    return [{**common, **row} for row in rows]


COLUMNS = (
    "judge", "n", "failures", "optimizer", "accuracy", "kappa", "judge calls", "reflections",
    "embeddings", "failed", "seconds", "calls later", "words later",
)  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and what went wrong."""
    import pandas as pd

    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    counts = ["judge calls", "reflections", "embeddings", "failed", "calls later", "words later"]
    table[counts] = table[counts].astype("Int64")
    print(
        table.to_string(
            index=False,
            na_rep="",
            formatters={
                "failures": "{:.0%}".format,
                "accuracy": _figure("{:.3f}"),
                "kappa": _figure("{:.2f}"),
                "seconds": _figure("{:.1f}"),
            },
        )
    )
    for row in rows:
        where = f"{row['optimizer']}, {row['judge']}, N={row['n']}, {row['failures']:.0%} failing"
        if row.get("note"):
            print(f"! {where}: {row['note']}")
        if row.get("other"):
            print(f"! {where}: {row['other']} requests that the simulation does not know")


def _figure(form: str) -> Any:
    return lambda number: "" if number != number else form.format(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[10, 50, 200], help="labelled traces")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds an answer takes")
    parser.add_argument("--judges", nargs="+", default=["systematic", "noisy"])
    failing: dict[str, Any] = {"type": float, "nargs": "+", "default": [0.0, 0.05]}
    parser.add_argument("--failures", **failing, help="shares of 500s")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--quick", action="store_true", help="only N = 50, where nothing fails")
    parser.add_argument("--seed", type=int, default=0, help="of items and failures")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a run may take")
    parser.add_argument("--cold", action="store_true", help="no warm-up: imports count")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.n, options.failures = options.n[0], options.failures[0]
        print("\n" + json.dumps(run_one(options)))
        return 0
    if options.quick:
        options.n, options.failures = [50], [0.0]

    print(f"SIMULATION, no language model; {options.latency} s latency, {os.cpu_count()} cores")
    rows = []
    for judge, n, failures in itertools.product(options.judges, options.n, options.failures):
        for name in options.optimizers:
            chosen = {"judges": [judge], "n": [n], "failures": [failures], "optimizers": [name]}
            found = measure(options, **chosen)
            run = f"{judge}, N={n}, {failures:.0%} failing, {name}"
            reached = found[-1].get("accuracy", float("nan"))
            print(f"{run}: {reached:.3f}", file=sys.stderr, flush=True)
            if name == "few-shot":  # nothing fails there
                found = found if failures == 0 else found[-1:]
            rows += found
    show(rows)
    return 1 if any(row.get("other") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
