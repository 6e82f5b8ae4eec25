"""`score`: a table of any length in, a folder of verdicts out, whatever happens in between."""

from __future__ import annotations

import datetime
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import dask.dataframe
import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
from asking import OwnJudge
from click.testing import CliRunner
from embedded import Embedded, embedded
from loopback import UNKNOWN_MODEL, Loopback, completion
from mlflow.entities import Feedback
from mlflow.genai.judges import Judge

import workbench
from workbench.cli import main
from workbench.errors import ArgumentError, BudgetError, ModelError, StoreError, TableError
from workbench.judging.judge import fingerprint
from workbench.judging.scoring import draw

Start = Callable[..., Loopback]
GRADES = Literal["excellent", "good", "fair", "poor"]


def judge_at(url: str, **options: Any) -> Judge:
    given = {"model": "openai:/simulated", "feedback_value_type": GRADES, **options}
    text = given.pop("instructions", "Does {{ outputs }} answer {{ inputs }}?")
    return workbench.make_judge("quality", text, base_url=url, **given)


def answers(count: int) -> pd.DataFrame:
    numbers = range(count)
    return pd.DataFrame(
        {
            "id": [f"row-{n}" for n in numbers],
            "q": [f"question {n}" for n in numbers],
            "a": [f"answer {n}" for n in numbers],
        }
    )


def score(judge: Judge, table: Any, to: Path, **options: Any) -> workbench.Scored:
    given = {"inputs": "q", "outputs": "a", "keep": ["id"], "partition_rows": 10, **options}
    return workbench.score(judge, table, to=to, progress=False, **given)


# -- what comes out ---------------------------------------------------------------------------


def test_each_row_has_its_verdict_and_what_it_cost(tmp_path: Path, loopback: Start) -> None:
    """Position, kept columns, verdict, fingerprint, tokens; whole files of partitions; no trace."""
    server = loopback()
    judge = judge_at(server.url)
    done = score(judge, answers(25), tmp_path / "v")
    table = done.table
    assert list(table.columns) == [
        "row", "id", "time", "verdict", "rationale", "error", "fingerprint",
        "input_tokens", "output_tokens", "cost", "calls",
    ]  # fmt: skip
    assert list(table["id"]) == list(answers(25)["id"])
    assert list(table["row"]) == list(range(25))
    assert set(table["fingerprint"]) == {fingerprint(judge)}
    assert (table["input_tokens"].sum(), table["calls"].sum()) == (2500, 25)
    assert set(table["verdict"]) <= {"excellent", "good", "fair", "poor"}
    assert [pq.read_metadata(p).num_rows for p in sorted((tmp_path / "v").glob("*.parquet"))] == [
        10, 10, 5,
    ]  # fmt: skip
    assert (done.rows, done.failed, done.asked, done.paid.requests) == (25, 0, 25, 25)
    assert repr(done).startswith("<Scored 'quality': 25 rows in ")
    assert dask.dataframe.read_parquet(tmp_path / "v").compute()["id"].nunique() == 25


def test_every_kind_of_table_gives_the_same_verdicts(
    tmp_path: Path, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pandas, Dask, a Parquet file and folder, CSV and JSONL: content alone tells partitions."""
    frame, server = answers(23), loopback()
    judge = judge_at(server.url)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    dask.dataframe.from_pandas(frame, npartitions=3).to_parquet(tmp_path / "parts")
    tables: list[Any] = [frame, dask.dataframe.from_pandas(frame, npartitions=4)]
    tables += [tmp_path / name for name in ("t.parquet", "parts", "t.csv", "t.jsonl")]
    monkeypatch.setenv("HOME", str(tmp_path))
    tables += ["~/parts", "~/t.csv"]
    for number, table in enumerate(tables):
        done = score(judge, table, tmp_path / "one")
        assert done.asked == (0 if number else 23), table
    assert server.requests == 23


def test_files_of_a_folder_have_their_own_types(tmp_path: Path, loopback: Start) -> None:
    """As where a part has no value in a column, or numbers in place of text."""
    (tmp_path / "parts").mkdir()
    for part, (kept, text) in enumerate([(1, None), (1.5, "words"), ("x", 7)]):
        table = pd.DataFrame({"q": ["question"], "a": ["answer"], "k": [kept], "more": [text]})
        table.to_parquet(tmp_path / "parts" / f"{part}.parquet")
    given = {"inputs": ["q", "more"], "keep": ["k"]}
    done = score(judge_at(loopback().url), tmp_path / "parts", tmp_path / "v", **given)
    assert (done.rows, done.failed) == (3, 0)
    assert list(done.table["k"]) == ["1", "1.5", "x"]


@pytest.mark.parametrize(("kind", "numbers"), [(bool, "bool"), (int, "int"), (float, "float")])
def test_verdicts_keep_their_type(
    tmp_path: Path, loopback: Start, kind: type, numbers: str
) -> None:
    """Numbers and truth values are no texts in the files."""
    done = score(judge_at(loopback().url, feedback_value_type=kind), answers(12), tmp_path / "v")
    assert str(done.table["verdict"].dtype).startswith(numbers)


def test_an_abstention_is_neither_verdict_nor_failure(tmp_path: Path, loopback: Start) -> None:
    """Its verdict is empty, and so is its error."""
    says = '{"result": "N/A", "rationale": "cannot tell"}'
    done = score(judge_at(loopback(says=says).url), answers(3), tmp_path / "v")
    assert (done.failed, done.abstained) == (0, 3)
    assert done.table["verdict"].isna().all()
    assert list(done.table["rationale"]) == ["cannot tell"] * 3


def test_rows_are_dated_by_the_table_or_by_when_they_were_judged(
    tmp_path: Path, loopback: Start
) -> None:
    """Dates and texts of them, in UTC; a row without one has the time of its verdict."""
    table = answers(3).assign(at=["2026-03-01T10:00:00+02:00", "2026-03-02", None])
    times = score(judge_at(loopback().url), table, tmp_path / "v", time="at").table["time"]
    assert times[0] == pd.Timestamp("2026-03-01 08:00", tz="UTC")
    assert times[1] == pd.Timestamp("2026-03-02", tz="UTC")
    assert pd.Timestamp.now(tz="UTC") - times[2] < pd.Timedelta(minutes=5)


def test_decimals_and_dates_are_kept_as_text(tmp_path: Path, loopback: Start) -> None:
    """As Parquet holds sums of money."""
    prices = [Decimal("1.50"), None, Decimal("20.00")]
    table = answers(3).assign(price=prices, day=datetime.date(2026, 3, 1))
    table.to_parquet(tmp_path / "t.parquet")
    judge = judge_at(loopback().url)
    done = score(judge, tmp_path / "t.parquet", tmp_path / "v", keep=["price", "day"])
    assert done.table["price"].fillna("none").tolist() == ["1.50", "none", "20.00"]
    assert done.table["day"].tolist() == ["2026-03-01"] * 3
    again = score(judge, table, tmp_path / "v", keep=["price", "day"])
    assert again.asked == 0


@pytest.mark.parametrize(
    ("cells", "written"),
    [
        ([1] * 10 + [2] * 30, [1] * 10 + [2] * 30),
        ([None] * 25 + [5.0] * 5 + [6.5] * 10, [5.0] * 5 + [6.5] * 10),
        ([1] * 10 + [1.5] * 30, ["1"] * 10 + ["1.5"] * 30),
        ([1] * 10 + ["x"] * 30, ["1"] * 10 + ["x"] * 30),
        ([None] * 40, []),
    ],
)
def test_kept_cells_have_one_type(
    tmp_path: Path, loopback: Start, cells: list[Any], written: list[Any]
) -> None:
    """That of all cells of the table, else text."""
    table = answers(40).assign(k=pd.Series(cells, dtype=object))
    done = score(judge_at(loopback().url), table, tmp_path / "v", keep=["k"])
    assert done.table["k"].dropna().tolist() == written


@pytest.mark.parametrize("text", ["01/04/2026", "now", "today", "2026", "31.03.2026", "2026-02-30"])
def test_dates_are_never_guessed(tmp_path: Path, loopback: Start, text: str) -> None:
    """Text that is no ISO 8601 is refused with its row: 01/04 would be January, 28/04 April."""
    table, server = answers(3).assign(at=["2026-03-31", text, text]), loopback()
    with pytest.raises(TableError, match=f"row 1 holds '{text}', which is no date of ISO 8601"):
        score(judge_at(server.url), table, tmp_path / "v", time="at")
    assert server.requests == 0


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("concurrency", [0, -1, "8", 1.5]),
        ("partition_rows", ["10", 1.5, None, 0, True]),
        ("seed", [-1, "0"]),
        ("sample", [float("inf"), float("nan"), "10", 0, 1.5]),
    ],
)
def test_a_wrong_number_is_told_before_anything_is_read(
    tmp_path: Path, loopback: Start, argument: str, values: list[Any]
) -> None:
    """Also for a cluster, which would wait for ever."""
    judge = judge_at(loopback().url)
    for value in values:
        with pytest.raises(ArgumentError, match=f"{argument}="):
            score(judge, answers(3), tmp_path / "v", client=object(), **{argument: value})
    assert score(judge, answers(3), tmp_path / "v", keep=None).rows == 3


# -- failures ---------------------------------------------------------------------------------


def test_failures_are_rows_and_asked_again_when_wanted(tmp_path: Path, loopback: Start) -> None:
    """`retry_failed` asks about these alone, adds up what they cost, and keeps the rest."""
    server = loopback(junk_share=0.3, seed=3)
    judge, table = judge_at(server.url), answers(40)
    first = score(judge, table, tmp_path / "v")
    assert 0 < first.failed < 40
    assert list(first.failures["row"]) == [
        r for r, e in enumerate(first.table["error"]) if not pd.isna(e)
    ]
    assert score(judge, table, tmp_path / "v").asked == 0
    server._request("POST", "/control", {"junk_share": 0.0})
    second = score(judge, table, tmp_path / "v", retry_failed=True)
    assert (second.asked, second.failed) == (first.failed, 0)
    assert second.table["calls"].sum() == server.requests
    kept = first.table["error"].isna()
    assert second.table[kept]["verdict"].equals(first.table[kept]["verdict"])


def test_rows_that_are_always_refused_hold_up_no_others(tmp_path: Path, loopback: Start) -> None:
    """Where the folder holds answers, failures are those of their rows, in each later run."""
    server = loopback(script="200x8,400x12,200x8,400x2,403x1,400x13")
    judge, table = judge_at(server.url), answers(30)
    assert score(judge, table, tmp_path / "v", concurrency=1).failed == 14
    again = score(judge, table, tmp_path / "v", concurrency=1, retry_failed=True)
    assert (again.asked, again.failed) == (14, 14)


def test_a_row_that_cannot_be_asked_about_says_why(tmp_path: Path, loopback: Start) -> None:
    """No output, or a cell that cannot be stored: an error of the row, and no call."""
    table, server = answers(12).astype(object), loopback()
    table.loc[3, "a"], table.loc[7, "q"] = None, None
    done = score(judge_at(server.url), table, tmp_path / "v")
    assert list(done.failures["row"]) == [3, 7]
    assert "no outputs" in done.failures["error"][0]
    assert server.requests == 10


def test_a_model_that_cannot_answer_ends_the_run(tmp_path: Path, loopback: Start) -> None:
    """After a few calls, and the folder stays as it was."""
    server = loopback()
    with pytest.raises(ModelError, match="does not exist"):
        score(judge_at(server.url, model=f"openai:/{UNKNOWN_MODEL}"), answers(50), tmp_path / "v")
    assert server.requests < 10
    assert not list((tmp_path / "v").glob("part-*"))


@pytest.mark.parametrize(
    ("first", "more", "fits"),
    [(1, "x", False), (1, 1.5, False), (1, None, True), (1.5, 1, True), ("x", 1, True)],
)
def test_cells_of_another_type_are_told_before_a_call(
    tmp_path: Path, loopback: Start, first: Any, more: Any, fits: bool
) -> None:
    server = loopback()
    judge = judge_at(server.url)
    cells = pd.Series([first] * 10 + [more] * 5, dtype=object)
    score(judge, answers(10).assign(k=cells[:10]), tmp_path / "v", keep="k")
    if fits:
        assert score(judge, answers(15).assign(k=cells), tmp_path / "v", keep="k").asked == 5
    else:
        with pytest.raises(ArgumentError, match=r"keep: column 'k' now holds .*int64 in"):
            score(judge, answers(15).assign(k=cells), tmp_path / "v", keep="k")
        assert server.requests == 10


def test_another_judge_or_table_is_refused(tmp_path: Path, loopback: Start) -> None:
    """The folder of one judge and table takes no verdicts on another; nothing is asked."""
    server = loopback()
    judge, table = judge_at(server.url), answers(20)
    score(judge, table, tmp_path / "v")
    other = judge_at(server.url, instructions="Is {{ outputs }} polite?")
    changed = table.assign(a=["changed", *table["a"][1:]])
    for arguments, said in (
        ((other, table), "another judge"),
        ((judge, changed), "another table"),
        ((judge, table[:10]), "more rows than the table"),
    ):
        with pytest.raises(ArgumentError, match=said):
            score(*arguments, tmp_path / "v")
    with pytest.raises(ArgumentError, match="another size of partitions"):
        score(judge, table, tmp_path / "v", partition_rows=5)
    assert server.requests == 20


def test_what_cannot_be_scored_is_told_before_a_call(tmp_path: Path, loopback: Start) -> None:
    """Columns, files and judges that do not fit."""
    server = loopback()
    judge = judge_at(server.url)
    (tmp_path / "bad.csv").write_text("q,a,id\n1,2\n")
    for table, options, kind, said in (
        (answers(2), {"inputs": "question"}, ArgumentError, "no column 'question'"),
        (answers(2), {"inputs": None}, ArgumentError, "inputs=None must be a column"),
        (answers(2), {"partition_rows": 0}, ArgumentError, "1 or more"),
        (answers(2).assign(row=1), {"keep": "row"}, ArgumentError, "Rename it"),
        (answers(0), {}, ArgumentError, "no rows"),
        (3, {}, ArgumentError, "table is a int"),
        (tmp_path / "none.csv", {}, TableError, "no file"),
        (tmp_path / "bad.csv", {}, TableError, "line 2 has 2 cells"),
        (answers(2).assign(at=5), {"time": "at"}, TableError, "row 0 holds 5, which is no date"),
        (
            answers(2).assign(price=[1.5, float("inf")]), {"keep": "price"}, TableError,
            "'price', row 1: it holds an infinite number",
        ),
        (answers(2), {"sample": 1.5}, ArgumentError, "share of the rows"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            score(judge, table, tmp_path / "v", **options)
    answers(2).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "parts").mkdir()
    answers(2).to_parquet(tmp_path / "parts" / "a.parquet")
    answers(2).drop(columns="q").to_parquet(tmp_path / "parts" / "b.parquet")
    with pytest.raises(ArgumentError, match=r"b\.parquet: the table has no column 'q'"):
        score(judge, tmp_path / "parts", tmp_path / "v")
    for inside in (tmp_path, tmp_path / "verdicts" / "new"):
        with pytest.raises(ArgumentError, match="is the table itself, or in it"):
            score(judge, tmp_path, inside)
    traced = judge_at(server.url, instructions="Look at {{ trace }}.")
    with pytest.raises(ArgumentError, match="are no traces"):
        score(traced, answers(2), tmp_path / "v")
    told = judge_at(server.url, instructions="Is {{ outputs }} what {{ expectations }} says?")
    with pytest.raises(ArgumentError, match="needs expectations=: columns"):
        score(told, answers(2), tmp_path / "v")
    assert server.requests == 0


def test_a_judge_of_a_user_s_own_class_may_do_without_expectations(tmp_path: Path) -> None:
    """The signature that MLflow gives it names them."""

    class Short(OwnJudge):
        def __call__(
            self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None
        ) -> Feedback:
            return Feedback(name=self.name, value="yes" if len(outputs) < 9 else "no")

    assert list(score(Short(name="short"), answers(2), tmp_path).table["verdict"]) == ["yes", "yes"]


# -- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "at_least", "at_most"),
    [(workbench.Budget(35), 30, 35), (workbench.Budget(tokens=3000), 20, 30)],
)
def test_a_budget_is_kept_to_within_a_partition(
    tmp_path: Path, loopback: Start, budget: workbench.Budget, at_least: int, at_most: int
) -> None:
    """Partitions that cannot be expected to fit are not begun; a larger budget does the rest."""
    server = loopback()
    judge = judge_at(server.url)
    with pytest.raises(BudgetError, match="Run again with a larger budget"):
        score(judge, answers(100), tmp_path / "v", budget=budget)
    assert at_least <= server.requests <= at_most
    assert workbench.Scored.open(tmp_path / "v").rows == server.requests
    assert score(judge, answers(100), tmp_path / "v").rows == server.requests == 100


def test_requests_that_got_lost_count_as_much_as_the_others(
    tmp_path: Path, loopback: Start
) -> None:
    """What they used is not known; after ten clean rows nearly all need a second request."""
    server = loopback(script="200x10," + "0x1,200x1," * 90, retry_after=0)
    budget = workbench.Budget(tokens=3000)
    with pytest.raises(BudgetError, match="Run again with a larger budget"):
        score(judge_at(server.url), answers(100), tmp_path / "v", budget=budget, concurrency=4)
    assert workbench.Scored.open(tmp_path / "v").rows == 20
    assert 25 <= server.requests <= 35


def test_a_budget_of_tokens_needs_a_server_that_counts_them(
    tmp_path: Path, loopback: Start
) -> None:
    """What it does not tell would never use the budget up: the first partition shows it."""
    server = loopback(page=silent_of_tokens())
    with pytest.raises(BudgetError, match=r"does not say how many tokens.*10 rows were judged now"):
        score(
            judge_at(server.url), answers(60), tmp_path / "v", budget=workbench.Budget(tokens=3000)
        )
    assert server.requests == workbench.Scored.open(tmp_path / "v").rows == 10


def silent_of_tokens() -> str:
    body = json.loads(completion('{"result": "good", "rationale": "so"}'))
    return json.dumps({**body, "usage": None})


def test_a_file_of_an_old_encoding_is_read_as_told(tmp_path: Path, loopback: Start) -> None:
    answers(3).assign(a="café").to_csv(tmp_path / "t.csv", index=False, encoding="cp1252")
    judge = judge_at(loopback().url)
    with pytest.raises(TableError, match="encoding='cp1252'"):
        score(judge, tmp_path / "t.csv", tmp_path / "v")
    assert score(judge, tmp_path / "t.csv", tmp_path / "v", encoding="cp1252").rows == 3


# -- what cuts a run short --------------------------------------------------------------------

PROGRAM = """
import sys
import pandas as pd, workbench
from typing import Literal
judge = workbench.make_judge(
    "quality", "Does {{ outputs }} answer {{ inputs }}?", model="openai:/simulated",
    base_url=sys.argv[1], feedback_value_type=Literal["excellent", "good", "fair", "poor"],
)
print("ready", flush=True)
workbench.score(
    judge, sys.argv[2], inputs="q", outputs="a", keep=["id"], to=sys.argv[3], partition_rows=10,
    concurrency=4, progress=False,
)
"""


def program(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-0123456789")
    with embedded() as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, counting: Embedded, how: int) -> None:
    """Whole partitions stay, and at most one is paid twice."""
    answers(60).to_parquet(tmp_path / "t.parquet")
    counting.hold_after(34)
    process = program(counting.url, tmp_path / "t.parquet", tmp_path / "v")
    counting.wait_until_held()
    process.send_signal(how)
    counting.release(answering=False)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in said) == (how == signal.SIGINT)
    there = workbench.Scored.open(tmp_path / "v")
    assert there.rows == 30
    before = Counter(counting.answered)
    counting.hold_after(10**9)
    done = program(counting.url, tmp_path / "t.parquet", tmp_path / "v")
    assert done.communicate(timeout=60)[1] == ""
    table = workbench.Scored.open(tmp_path / "v").table
    assert sorted(table["row"]) == list(range(60))
    assert table["error"].isna().all()
    again = before & counting.answered
    assert before.total() + counting.answered.total() <= 60 + 10
    assert again.total() <= 10


def test_a_full_disk_is_told_and_what_was_done_stays(tmp_path: Path, loopback: Start) -> None:
    """The partition that cannot be written leaves nothing behind; the rest is done later."""
    server = loopback()
    judge, table = judge_at(server.url), answers(30)
    table["id"] = [("x" * 10 if n < 20 else os.urandom(30_000).hex()) for n in range(30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="What was written before stays"):
            score(judge, table, tmp_path / "v")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "v").glob("*[!k]")) == [
        "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip
    assert score(judge, table, tmp_path / "v").asked == 10


def test_two_runs_do_not_write_one_folder(tmp_path: Path, counting: Embedded) -> None:
    """The second is refused while the first is at work."""
    answers(20).to_parquet(tmp_path / "t.parquet")
    counting.hold_after(3)
    process = program(counting.url, tmp_path / "t.parquet", tmp_path / "v")
    counting.wait_until_held()
    with pytest.raises(ArgumentError, match="another process scores into this folder"):
        score(judge_at(counting.url), answers(20), tmp_path / "v")
    counting.release()
    assert process.communicate(timeout=60)[1] == ""


# -- the sample -------------------------------------------------------------------------------


def test_a_sample_becomes_traces_with_verdicts_once(
    store: str, tmp_path: Path, loopback: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn by the seed, with its probability; again it writes nothing; a larger one holds it."""
    judge = judge_at(loopback().url)
    assert score(judge, answers(200), tmp_path / "v").trace_ids == []
    assert mlflow.search_traces(return_type="list") == []
    for _ in range(2):
        scored = score(judge, answers(200), tmp_path / "v", sample=30, seed=7)
    traces = mlflow.search_traces(return_type="list", max_results=1000)
    assert {t.info.trace_id for t in traces} == set(scored.trace_ids)
    assert (len(traces), set(scored.sample["probability"])) == (30, {0.15})
    assert {t.info.tags["workbench.selection_probability"] for t in traces} == {"0.15"}
    verdicts = scored.table.set_index("row")["verdict"]
    for row, trace_id in zip(scored.sample["row"], scored.trace_ids, strict=True):
        [trace] = [t for t in traces if t.info.trace_id == trace_id]
        assert trace.data.spans[0].inputs == {"q": f"question {row}"}
        [logged] = trace.info.assessments
        assert logged.feedback.value == verdicts[row]
    labels = pd.DataFrame({"trace_id": scored.trace_ids, "value": ["good"] * 30})
    workbench.log_labels(labels, name="quality", annotator="ana", value="value")
    assert len(workbench.pair(judge, scored)) == 30
    assert len(dask.dataframe.read_parquet(tmp_path / "v")) == 200  # without the sample's file
    smaller = set(scored.trace_ids)
    larger = score(judge, answers(200), tmp_path / "v", sample=0.5, seed=7)
    assert smaller < set(larger.trace_ids)
    other = score(judge, answers(200), tmp_path / "v", sample=20, seed=8)
    assert len(other.trace_ids) == 20
    none = score(judge, answers(200), tmp_path / "v", sample=1e-6)
    assert none.trace_ids == other.trace_ids
    assert "drew none of 200 rows" in capsys.readouterr().out


@pytest.mark.parametrize("sample", [0.2, 40])
def test_every_row_has_the_same_chance_of_being_drawn(sample: float) -> None:
    """Over many seeds each of 200 rows is drawn as often as its probability says."""
    often: Counter[int] = Counter()
    for seed in range(500):
        drawn, probability = draw(range(200), sample, seed)
        often.update(drawn)
    assert probability == 0.2
    shares = pd.Series([often[row] / 500 for row in range(200)])
    assert abs(shares.mean() - 0.2) < 0.01
    assert shares.between(0.2 - 0.09, 0.2 + 0.09).all()  # five standard errors


# -- the command ------------------------------------------------------------------------------


def test_the_command_scores_with_a_registered_judge(store: str, tmp_path: Path) -> None:
    """Options are those of the function; what is wrong is told in a line."""
    judge = workbench.make_judge(
        "quality", "Rate {{ outputs }} given {{ inputs }}.", model="offline:/rubric",
        feedback_value_type=GRADES,
    )  # fmt: skip
    workbench.register(judge)
    answers(12).to_csv(tmp_path / "t.csv", index=False)
    words = ["score", "quality", str(tmp_path / "t.csv"), "--inputs", "q", "--outputs", "a"]
    words += ["--keep", "id", "--to", str(tmp_path / "v")]
    done = CliRunner().invoke(main, [*words, "--sample", "5"])
    assert done.exit_code == 0, done.output
    assert "12 rows in" in done.output
    there = workbench.Scored.open(tmp_path / "v")
    assert (there.rows, there.fingerprint, len(there.trace_ids)) == (12, fingerprint(judge), 5)
    few = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "few"), "--budget-tokens", "0"])
    assert (few.exit_code, "BudgetError" in few.output) == (1, True)
    wrong = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "w"), "--time", "when"])
    assert wrong.exit_code == 1
    assert "no column 'when'" in wrong.output
