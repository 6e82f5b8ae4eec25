"""Optimizers beside each other: the same split, every one scored once, failures as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_model
import mlflow
import numpy as np
import pandas as pd
import pytest
from clarity import CURED, TEXT, Proposing, biased_judge, labelled
from made_pairs import make_pairs
from matplotlib.axes import Axes
from mlflow.genai.judges.base import AlignmentOptimizer

import workbench
from workbench.alignment.benchmark import named_optimizers
from workbench.errors import ArgumentError, ModelError
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale
from workbench.store.traces import examples


@pytest.fixture
def judge(store: str) -> Any:
    """A judge with 40 labelled and judged traces."""
    made = biased_judge()
    labelled(40, made)
    return made


class Failing(AlignmentOptimizer):
    def align(self, judge: Any, traces: list[Any]) -> Any:
        raise RuntimeError("it fell over <b>hard</b>")


def run(judge: Any, *optimizers: Any, **options: Any) -> workbench.OptimizerComparison:
    chosen = optimizers or (Proposing(CURED), Proposing(TEXT), Failing())
    return workbench.compare_optimizers(judge, None, chosen, progress=False, **options)


def test_all_are_scored_on_the_same_pairs_that_none_has_seen(judge: Any) -> None:
    """Every row has the same held-out items; what failed is a row with its reason."""
    one, two = Proposing(CURED), Proposing(TEXT)
    found = run(judge, one, two, Failing())
    table = found.table
    assert list(table.index) == [
        "original", "majority label", "few-shot", "Proposing", "Proposing (2)", "Failing",
    ]  # fmt: skip
    assert list(table["status"]) == [
        "reference", "reference", "reference", "improved", "unchanged", "failed",
    ]  # fmt: skip
    assert found.seed == found.split.seed
    test = set(found.split.test.trace_ids)
    seen = {trace.info.trace_id for trace in one.seen}
    assert seen == {*found.split.train.trace_ids, *found.split.dev.trace_ids}
    assert not seen & test
    assert set(table["n"].dropna()) == {len(test)}
    assert "it fell over" in table.loc["Failing", "reason"]
    assert table.loc["Proposing", "accuracy"] > table.loc["original", "accuracy"]
    assert table.loc["Proposing", "low"] <= table.loc["Proposing", "accuracy"]
    assert found.judges["Proposing"].instructions == CURED
    assert set(found.judges) == {"original", "few-shot", "Proposing", "Proposing (2)"}


def test_an_optimizer_is_not_called_like_what_stands_beside_it(judge: Any) -> None:
    """Before anything is paid for."""
    for name in ("original", "majority label", "few-shot"):
        with pytest.raises(ArgumentError, match=f"holds '{name}'.*under names but original"):
            workbench.compare_optimizers(judge, None, {name: Failing()}, progress=False)


def test_a_single_optimizer_needs_no_list_and_a_seed_may_be_numpys(judge: Any) -> None:
    """As `numpy.arange` gives it; few-shot draws by it as well."""
    one = workbench.compare_optimizers(
        judge, None, Proposing(TEXT), seed=np.int64(3), progress=False
    )
    assert list(one.table.index) == ["original", "majority label", "few-shot", "Proposing"]
    assert list(one.table["status"][2:]) == ["reference", "unchanged"]
    assert type(one.seed) is int
    with pytest.raises(ArgumentError, match="optimizers holds 5"):
        workbench.compare_optimizers(judge, None, 5, progress=False)


def test_figures_are_those_of_align(judge: Any) -> None:
    """The same split, verdicts and gate as workbench.align with the same seed."""
    alignment = workbench.align(judge, optimizer=Proposing(CURED), seed=3, progress=False)
    found = run(judge, Proposing(CURED), seed=3)
    comparison, row = found.comparisons["Proposing"], found.table.loc["Proposing"]
    assert comparison.after.figures == alignment.after.figures
    assert row["p"] == alignment.comparison.p_value
    assert (row["status"], row["reason"]) == (alignment.status, alignment.reason)


def test_the_majority_label_is_that_of_train(judge: Any) -> None:
    """It is scored like a judge: its accuracy is that label's share of the held-out pairs."""
    found = run(judge, Proposing(TEXT))
    value = found.table.loc["majority label", "reason"].split("'")[1]
    counts = found.split.train.table["human"].value_counts()
    assert value == min(counts.index[counts == counts.max()])  # as the gate takes it
    share = (found.split.test.table["human"] == value).mean()
    assert found.table.loc["majority label", "accuracy"] == pytest.approx(share)
    assert found.table.loc["majority label", "kappa"] == pytest.approx(0.0)


def test_few_shot_shows_train_items_of_each_label_as_the_seed_draws_them(judge: Any) -> None:
    """As many as SIMBA shows at most, two of each label, with rationales; none of test."""
    found = run(judge, Proposing(TEXT))
    shown = found.judges["few-shot"].instructions
    by_id = {e.trace_id: e for e in examples()}
    told = [i for i in found.pairs.trace_ids if str(by_id[i].outputs) in shown]
    assert len(told) == workbench.SIMBA(progress=False).settings.max_examples
    assert set(told) <= set(found.split.train.trace_ids)
    assert shown.count("gives the width") == len(told) / 2
    assert run(judge, Proposing(TEXT)).judges["few-shot"].instructions == shown
    assert run(judge, Proposing(TEXT), seed=1).judges["few-shot"].instructions != shown


def test_a_gain_that_may_be_luck_is_called_uncertain(store: str) -> None:
    """As of an alignment: a few held-out items show little."""
    made = biased_judge()
    labelled(12, made)
    row = run(made, Proposing(CURED)).table.loc["Proposing"]
    assert row["p"] > 0.05
    assert row["status"] == "improved (uncertain)"


def test_a_later_judgement_is_measured(judge: Any) -> None:
    """None is needed for the majority label."""
    found = run(judge, Proposing(CURED))
    assert set(found.table["later calls"]) == {0, 1}


def test_the_tokens_of_a_later_judgement_are_those_that_the_server_counts(
    store: str, loopback: Any
) -> None:
    """Of the original as well, and where it stays."""
    served = biased_judge(model="openai:/any", base_url=loopback().url)
    labelled(30, served)
    tokens = run(served, Proposing(CURED), Proposing(TEXT)).table["later tokens"]
    assert tokens.dropna().to_dict() == dict.fromkeys(
        ["original", "few-shot", "Proposing", "Proposing (2)"], 110
    )


def test_the_workbenchs_simba_learns_in_the_comparison(judge: Any) -> None:
    """By name, with calls and seconds told; a second run pays nothing while learning."""
    first = run(judge, "workbench SIMBA")
    row = first.table.loc["workbench SIMBA"]
    assert row["judge calls"] > 0
    assert row["reflection calls"] > 0
    assert row["accuracy"] > first.table.loc["original", "accuracy"]
    second = run(judge, "workbench SIMBA").table.loc["workbench SIMBA"]
    assert second["judge calls"] == second["reflection calls"] == 0
    assert second["accuracy"] == row["accuracy"]


def test_who_is_best_is_claimed_only_where_a_test_tells_them_apart(judge: Any) -> None:
    """Two equal judges cannot be told apart, and the table's text says so."""
    found = run(judge, Proposing(CURED), Proposing(CURED))
    assert "cannot be told" in found.conclusion
    assert found.conclusion in repr(found)
    assert "the likelier that one looks better by luck" in repr(found)
    tested = found.table.loc[["few-shot", "Proposing", "Proposing (2)"]]
    # Holm's adjustment: the smallest of three p values counts three times.
    smallest = tested["p"].idxmin()
    assert tested.loc[smallest, "p adjusted"] == pytest.approx(
        min(1.0, 3 * tested.loc[smallest, "p"])
    )
    assert (tested["p adjusted"] >= tested["p"]).all()


def test_an_optimizer_that_changes_nothing_is_not_one_of_those_compared(judge: Any) -> None:
    """It is the original once more: it makes no other p larger and no winner less certain."""
    alone, more = run(judge, Proposing(CURED)), run(judge, Proposing(CURED), Proposing(TEXT))
    row = more.table.loc["Proposing (2)"]
    assert (row["status"], row["accuracy"]) == ("unchanged", more.table["accuracy"].iloc[0])
    assert pd.isna(row["p adjusted"])
    assert more.conclusion == alone.conclusion
    assert any(note.startswith("2 judges were compared") for note in more.notes)
    assert (more.table["p adjusted"].dropna() == alone.table["p adjusted"].dropna()).all()


def beside(pairs: Pairs, **verdicts: list[Any]) -> str:
    """What is concluded of judges by their verdicts on the pairs, None where one was lost."""
    tested = {}
    for who, values in verdicts.items():
        rated = zip(pairs.trace_ids, values, strict=True)
        tested[who] = pairs.with_verdicts({i: (v, "") for i, v in rated if v is not None}, who)
    measured = {who: workbench.agreement(each) for who, each in tested.items()}
    rows = {
        who: {"accuracy": a.accuracy, "mean distance": a.mean_distance, "n": a.n}
        for who, a in measured.items()
    }
    table, split = pd.DataFrame.from_dict(rows, orient="index"), pairs.split(test_size=0.5)
    judges: Any = dict.fromkeys(tested)
    return workbench.OptimizerComparison(
        table, judges, {}, pairs, split, 0.0, (), tested=tested
    ).conclusion


def test_judges_are_told_apart_on_the_items_that_both_rated() -> None:
    """A verdict that is lost is neither right nor wrong, and the others still tell."""
    right, half = ["yes", "no"] * 10, ["no", "yes"] * 5 + ["yes", "no"] * 5
    pairs = make_pairs(right, half)
    told = "good has the best accuracy, 1.000, and is better than each of the others"
    assert beside(pairs, original=half, good=[None, *right[1:]]).startswith(told)
    few = [*right[:5], *[None] * 15]
    assert "no paired test tells it from half" in beside(pairs, half=half, few=few)
    assert "tells it from half" in beside(pairs, half=[*[None] * 5, *half[5:]], few=few)


def test_judges_of_numbers_are_ranked_by_distance() -> None:
    """Hardly a verdict equals its label, so that equal values tell nothing."""
    labels = [float(i) for i in range(20)]
    pairs = make_pairs(labels, labels, Scale("numeric"))
    near, far = [v + 0.1 for v in labels], [labels[0], *(v + 5 for v in labels[1:])]
    found = beside(pairs, far=far, near=near)
    assert found.startswith("near has the best mean distance")
    assert "is better than each of the others" in found


def test_the_comparison_is_a_run_with_its_table(judge: Any) -> None:
    """Table, split and notes are artifacts, each judge a run within that later splits heed."""
    found = run(judge)
    assert found.run_id
    folder = Path(mlflow.artifacts.download_artifacts(run_id=found.run_id))
    stored = pd.read_csv(folder / "comparison.csv", index_col="judge")
    assert stored["accuracy"].tolist() == pytest.approx(
        found.table["accuracy"].tolist(), nan_ok=True
    )
    children = mlflow.search_runs(
        filter_string=f"tags.mlflow.parentRunId = '{found.run_id}'", output_format="list"
    )
    assert {child.info.run_name for child in children} == {
        "few-shot", "Proposing", "Proposing (2)",
    }  # fmt: skip
    learned = {*found.split.train.trace_ids, *found.split.dev.trace_ids}
    aligned = found.judges["Proposing"]
    workbench.assess(aligned, progress=False)
    again = workbench.align(aligned, optimizer=Proposing(CURED + " "), progress=False)
    assert not learned & set(again.split.test.trace_ids)


def test_html_escapes_and_the_plot_shows_every_entry(judge: Any) -> None:
    """What an optimizer says is text, and each entry has its row in the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    found = run(judge)
    assert "<b>hard</b>" not in found._repr_html_()
    assert "&lt;b&gt;hard" in found._repr_html_()
    ax = workbench.plot_comparison(found)
    assert isinstance(ax, Axes)
    labels = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
    assert labels == list(found.table.index)
    assert any(text.get_text() == "failed" for text in ax.texts)
    assert workbench.plot_comparison(found, ax=ax) is ax


def test_what_is_not_there_is_left_out_and_said(judge: Any) -> None:
    """By default MemAlign needs to be given an embedding model; by name it is an error."""
    known = ["workbench SIMBA", "MLflow SIMBA", "MLflow GEPA"]
    assert list(named_optimizers(judge, None, 0, None)) == known
    assert list(named_optimizers(judge, None, 0, "openai:/e")) == [*known, "MLflow MemAlign"]
    for wanted, said in (
        (["MLflow MemAlign"], "embedding"),
        (["SIMBO"], "workbench SIMBA"),
        ([print], "AlignmentOptimizer"),
        ([], "nothing"),
    ):
        with pytest.raises(ArgumentError, match=said):
            workbench.compare_optimizers(judge, None, wanted, progress=False)


def test_a_seed_that_is_done_is_taken_for_the_same_parameters_and_data_alone(
    tmp_path: Path,
) -> None:
    """`make bench-model` goes on after an interrupt, and shows no other model's figures."""
    data = tmp_path / "own.csv"
    data.write_text("a,b\n1,2\n")
    given = ["--output", str(tmp_path), "--model", "openai:/m", "--data", str(data)]
    folder, parameters = bench_model.planned(0, bench_model.parsed(given))
    assert parameters["optimizers"] == "workbench SIMBA, MLflow GEPA"
    folder.mkdir()
    (folder / "comparison.csv").write_text("judge,kappa\noriginal,0.5\n")
    assert bench_model.run(0, bench_model.parsed(given))["kappa"].tolist() == [0.5]
    others = [
        ["--model", "openai:/n"],
        ["-p", "max_tokens", "9"],
        ["--embedding-model", "openai:/e"],
    ]
    folders = [bench_model.planned(0, bench_model.parsed([*given, *more]))[0] for more in others]
    data.write_text("a,b\n1,3\n")
    folders.append(bench_model.planned(0, bench_model.parsed(given))[0])
    assert len({folder, *folders}) == 5
    with pytest.raises(SystemExit):
        bench_model.parsed(["--base-url", "http://localhost:8000/v1"])


def test_a_judge_without_figures_is_told_with_its_reason() -> None:
    """One that is tested on fewer items than the others, as few-shot in a small context."""
    rows = pd.DataFrame(
        {
            "seed": [0, 0, 0],
            "judge": ["original", "few-shot", "MLflow GEPA"],
            "status": ["reference", "reference", "failed"],
            "accuracy": [0.5, None, None],
            "kappa": [0.1, None, None],
            "n": [36, 0, None],
            "reason": ["", "no usable verdict on 36 of 36", "it was stopped"],
            **dict.fromkeys(bench_model.SUMS, 1.0),
        }
    )
    assert bench_model.missing(rows) == [
        "few-shot, seed 0: no usable verdict on 36 of 36",
        "MLflow GEPA, seed 0: it was stopped",
    ]
    spans = bench_model.summary(rows)["kappa, seeds"]
    assert spans.tolist() == ["0.10 to 0.10", "", ""]


def test_all_that_are_named_reflect_with_the_model_that_is_given(judge: Any) -> None:
    made = named_optimizers(judge, None, 0, "openai:/e", "openai:/r", "http://localhost:1/v1")
    assert all("openai:/r" in vars(optimizer).values() for optimizer in made.values())


def test_a_judge_that_does_not_answer_is_an_error(store: str, loopback: Any) -> None:
    """Without the original judge there is nothing to compare with."""
    server = loopback(script="200x12,500x999")
    dead = biased_judge(model="openai:/any", base_url=server.url)
    labelled(12, dead)
    with pytest.raises(ModelError):
        run(dead, Proposing(TEXT))
