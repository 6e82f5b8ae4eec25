"""The command ``workbench``: run a notebook, check a judge as in CI, score many answers."""

from __future__ import annotations

import atexit
import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from workbench.credentials import without_credentials
from workbench.errors import NotebookError, WorkbenchError

_NOTEBOOK = "notebooks/4_align.ipynb"
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_PARAMETER = ("-p", "--parameter", "given")
_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="judge-workbench", prog_name="workbench")
def main() -> None:
    """Make an LLM judge agree with the people whose judgement counts."""
    # Else Python looks through all that is in memory once more before it ends, for seconds.
    atexit.register(gc.freeze)


def _budget(command: Any) -> Any:
    """Add the options that limit what is spent, of which `_limit` makes a budget."""
    kinds = {"--budget-usd": (float, "US dollars"), "--budget-tokens": (int, "Tokens")}
    for option, (kind, what) in {**kinds, "--budget": (int, "Model calls")}.items():
        command = click.option(option, type=kind, help=f"{what} at most in all.")(command)
    return command


def _limit(options: dict[str, Any]) -> Any:
    from workbench.models.budget import Budget

    calls, tokens, usd = map(options.pop, ("budget", "budget_tokens", "budget_usd"))
    return Budget(calls, tokens=tokens, usd=usd)


@main.command()
@click.argument("notebook", required=False)
@click.option(
    *_PARAMETER, multiple=True, nargs=2, metavar="NAME VALUE", help="See `workbench params`."
)
@click.option("--output", type=_FOLDER, default="output", help="Folder of all that the run writes.")
@click.option(
    "--record", type=_FILE, help="File to add the run's model answers to; .gz compresses."
)
@click.option("--replay", type=_FILE, help="Take all model answers from this file; call no model.")
def run(notebook: str | None, given: Any, output: Path, **answers: Any) -> None:
    """Run NOTEBOOK, a path or a name in notebooks/ (4_align when none is given).

    With --replay the run gives the result of the recorded one, but for ids of runs, times and
    paths: notebook and parameters are those of the recording unless others are given. What the
    file does not hold, as when the data differ, is an error.
    """
    from workbench.experiments.notebook import run_notebook
    from workbench.experiments.parameters import parse_parameters
    from workbench.models.recording import Player

    record, replay = answers["record"], answers["replay"]
    if record and replay:
        raise click.UsageError("--record and --replay exclude each other.")
    with _errors(exit_code=1):
        recorded = Player(replay).head.notebook if replay else None
    with _errors(exit_code=2):
        source, known = _declared(notebook or recorded or _NOTEBOOK)
        values = parse_parameters(known, given)
    click.echo(f"Running {source}", err=True)
    if replay:
        click.echo(f"Answers come from {replay}; no model is called.", err=True)
    with _errors(exit_code=1):
        ran = run_notebook(source, parameters=values, output=output, **answers)
    click.echo(closing_words(ran.summary, ran.notebook, ran.seconds))
    if record:
        click.echo(f"\nAnswers were written to {record}. Replay: workbench run --replay {record}")


def _declared(notebook: str) -> tuple[Path, list[Any]]:
    from workbench.experiments.parameters import find_notebook, notebook_parameters

    source = find_notebook(notebook)
    return source, notebook_parameters(source)


def closing_words(summary: dict[str, Any], notebook: Path, seconds: float) -> str:
    """Return what is printed at the end: the table of the summary, and where things are."""
    # Whatever notebook wrote it: what it says is shown without credentials.
    judge, table = summary.get("judge"), str(summary.get("table") or "").rstrip("\n")
    if isinstance(judge, dict):
        judge = f"{judge.get('name')} version {judge.get('version')}"
    places = {
        "status": summary.get("headline") or summary.get("status"),
        "judge": judge,
        "report": summary.get("report"),
        "notebook": notebook,
        "MLflow store": without_credentials(str(summary.get("tracking_uri") or "")),
        "experiment": summary.get("experiment"),
        "time": f"{seconds:.0f} s",
    }
    lines = ["", *([table, ""] if table else [])]
    lines += [f"{name + ':':<14}{value}" for name, value in places.items() if value]
    return "\n".join(lines)


@main.command()
@click.argument("notebook", default=_NOTEBOOK)
def params(notebook: str) -> None:
    """List the parameters of NOTEBOOK with their defaults."""
    with _errors(exit_code=2):
        source, known = _declared(notebook)
    if not known:
        click.echo(f"{source.name} takes no parameters: no cell of it is tagged 'parameters'.")
    written = {f"{p.name} = {p.source}": p.help for p in known}
    width = min(48, max(map(len, written), default=0))
    for text, comment in written.items():
        click.echo(f"{text:<{width}}  # {comment}" if comment else text)


@main.command()
@click.argument("notebook")
@click.option(
    *_PARAMETER,
    multiple=True,
    metavar="NAME=VALUES",
    help="Values of a parameter, separated by commas, or a range of whole numbers: seed=0..4. May "
    "be repeated; every combination is run. Quotes keep a text with commas together.",
)
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time; the cores by default.")
@click.option("--name", help="Of the sweep; that of the notebook by default.")
@click.option("--output", type=_FOLDER, default="output", help="Each run is below OUTPUT/NAME.")
@click.option("--experiment", default="sweeps", help="MLflow experiment.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds a run may take.")
@click.option("--cell-timeout", type=click.IntRange(1), help="Seconds that each cell may take.")
@_budget
@click.option("--force", is_flag=True, help="Run what is complete again.")
def sweep(notebook: str, given: Any, output: Path, experiment: str, **options: Any) -> None:
    """Run NOTEBOOK, a path or a name in notebooks/, with every combination of parameters.

    Runs that are complete are not run again: the same command continues what was interrupted. The
    MLflow store is that of MLFLOW_TRACKING_URI, else a file in the output folder. Exit status: 0
    all runs are complete, 1 some are not, 2 the parameters are wrong.
    """
    from workbench.experiments.parameters import expand, parse_grid

    with _errors(exit_code=2):
        source, known = _declared(notebook)
        grid = expand(parse_grid(known, given))
    with _errors(exit_code=1):
        import workbench

        used = workbench.use_workspace(output, experiment=experiment)
        options["budget"] = _limit(options)
        table = workbench.sweep(source, grid, output=output, **options)
        place = Path(table["folder"][0]).parent
        table.to_csv(place / "sweep.csv", index=False)
    shown = table.drop(columns="folder")
    if {"before", "after"} <= set(shown):  # of 4_align, which records more than a terminal shows
        names = [*workbench.varying(table, None), "status", "error", "seconds"]
        names += ["before", "after", "result", "calls", "cost"]
        shown = shown.filter(names)
    words = shown.round(3).astype(object).fillna("")  # no NaN for a person
    click.echo(words.to_string(index=False, max_colwidth=80))
    click.echo(f"\nRuns:          {place}, the whole table in sweep.csv")
    click.echo(f"MLflow store:  {used.tracking_uri}, experiment {used.experiment}")
    raise SystemExit(0 if (table["status"] == "complete").all() else 1)


@main.command()
@click.argument("name")
@click.option("--accuracy", type=float, help="Minimum share of equal values.")
@click.option("--kappa", type=float, help="Minimum of Cohen's kappa.")
@click.option("--weighted-kappa", type=float, help="Minimum of kappa with quadratic weights.")
@click.option("--sensitivity", type=float, help="Minimum share of people's positives found.")
@click.option("--specificity", type=float, help="Minimum share of people's negatives found.")
@click.option("--groups", help="Tag or input of what belongs together, such as a question's id.")
@click.option("--experiment", help="Name or id; the active one by default.")
@click.option("--version", type=int, help="Of the judge; the newest by default.")
@_budget
def check(name: str, experiment: str | None, version: int | None, **options: Any) -> None:
    """Check the registered judge NAME against the labelled traces that it did not learn from.

    It passes if the lower end of each 95 % interval is above its threshold. Without a threshold,
    sensitivity and specificity must be above 0.8. The store is that of MLFLOW_TRACKING_URI.
    Exit status: 0 passed, 1 not passed, 2 could not be checked.
    """
    with _errors(exit_code=2):
        from workbench.alignment.certificate import check_registered

        _use_experiment(experiment)
        options["budget"] = _limit(options)
        certificate = check_registered(name, version, **options)
    click.echo(str(certificate))
    raise SystemExit(0 if certificate.passed else 1)


def _use_experiment(experiment: str | None) -> None:
    # A bar for each of the small files that tell where a judge comes from would hide the result.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    from workbench.store.database import find_experiment_id

    mlflow.set_experiment(experiment_id=find_experiment_id(experiment, create=False))


@main.command()
@click.argument("name")
@click.argument("table", type=click.Path(exists=True, path_type=Path))
@click.option("--inputs", multiple=True, required=True, help="Column; may be repeated.")
@click.option("--outputs", multiple=True, required=True, help="Column; may be repeated.")
@click.option("--expectations", multiple=True, help="Column; may be repeated.")
@click.option("--keep", multiple=True, help="Column to copy, such as an id; may be repeated.")
@click.option("--time", help="Column of dates.")
@click.option("--to", type=_FOLDER, default="verdicts", help="Folder of the verdicts.")
@click.option("--version", type=int, help="Of the judge; the newest by default.")
@click.option("--experiment", help="Name or id; the active one by default.")
@_budget
@click.option("--partition-rows", type=int, default=1000, help="Rows of a file.")
@click.option("--concurrency", type=int, default=64, help="Calls at a time.")
@click.option("--sample", type=float, help="Share or number of rows to import as traces.")
@click.option("--retry-failed", is_flag=True, help="Ask again about rows that failed.")
@click.option("--encoding", help="Of a CSV file that is not UTF-8, such as cp1252.")
@click.option("--scheduler", help="Of Dask, whose workers judge; needs the extra dask.")
def score(
    name: str, table: Path, version: int | None, scheduler: str | None, **options: Any
) -> None:
    """Let the registered judge NAME rate the rows of TABLE, and write Parquet.

    TABLE is a Parquet file or folder, a CSV or JSONL file. Run again, it goes on where it was. The
    store is that of MLFLOW_TRACKING_URI.
    """
    options["outputs"] = [*options["outputs"]] if options["outputs"][1:] else options["outputs"][0]
    options["expectations"] = options["expectations"] or None
    with _errors(exit_code=1), ExitStack() as stack:
        import workbench

        if scheduler:
            from distributed import Client

            options["client"] = stack.enter_context(Client(scheduler))
        _use_experiment(options.pop("experiment"))
        judge = workbench.load_judge(name, version)
        options["budget"] = _limit(options)
        scored = workbench.score(judge, table, **options)
    click.echo(repr(scored)[1:-1])


@contextmanager
def _errors(*, exit_code: int) -> Iterator[None]:
    """End the command with an error in one line, 130 when it is interrupted."""
    try:
        yield
    except WorkbenchError as error:
        kind = "" if isinstance(error, NotebookError) else f"{type(error).__name__}: "
        click.echo(f"error: {kind}{error}", err=True)
        raise SystemExit(exit_code) from None
    except KeyboardInterrupt as stop:
        click.echo(f"\n{stop}", err=True)
        raise SystemExit(130) from None
    except Exception:
        # Python would end with 1, which may mean something else.
        traceback.print_exc()
        raise SystemExit(exit_code) from None


if __name__ == "__main__":
    main()
