"""Certificates: what passes, on which labels, how often these were used, and the command for CI."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from clarity import CURED, NAME, TEXT, WORSE, Proposing, biased_judge, labelled
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import COLOURS, from_confusion, make_pairs
from statsmodels.stats.proportion import proportion_confint

import workbench
from workbench.alignment.certificate import check_registered
from workbench.alignment.registry import load_judge
from workbench.alignment.runs import ALIGNED_TAG
from workbench.cli import main
from workbench.errors import ArgumentError, TooFewPairsError
from workbench.judging.judge import fingerprint, with_instructions
from workbench.metrics.agreement import agreement
from workbench.scale import Scale
from workbench.simba.candidate import Candidate

GOOD = [[190, 10], [15, 185]]  # specificity 190/200, sensitivity 185/200


def test_it_passes_where_every_lower_end_is_above_its_threshold() -> None:
    """Wilson's lower ends by statsmodels: 0.911 and 0.880; kappa is 0.875 here."""
    found = workbench.certify(from_confusion(GOOD), sensitivity=0.87, specificity=0.9, kappa=0.8)
    assert found.passed
    table = found.table
    assert table.loc["specificity", "low"] == pytest.approx(
        proportion_confint(190, 200, method="wilson")[0]
    )
    assert table.loc["sensitivity", ["low", "high"]].tolist() == pytest.approx(
        proportion_confint(185, 200, method="wilson")
    )
    assert table["n"].tolist() == [200, 200, 400]
    assert table.loc["kappa", "value"] == pytest.approx(0.875)
    assert not workbench.certify(from_confusion(GOOD), sensitivity=0.89).passed
    assert not workbench.certify(from_confusion(GOOD), sensitivity=0.87, kappa=0.9).passed
    assert list(workbench.certify(from_confusion(GOOD)).table["threshold"]) == [0.8, 0.8]


@given(st.lists(st.integers(0, 30), min_size=4, max_size=4), st.floats(0, 0.99))
def test_a_lower_threshold_never_fails_where_a_higher_one_passes(
    cells: list[int], threshold: float
) -> None:
    """And it passes exactly where the table says so."""
    if not sum(cells):
        return
    pairs = from_confusion([cells[:2], cells[2:]])
    high = workbench.certify(pairs, accuracy=threshold)
    assert high.passed == (high.table.loc["accuracy", "low"] > threshold)
    assert workbench.certify(pairs, accuracy=threshold / 2).passed or not high.passed


def test_rows_that_belong_together_prove_less() -> None:
    pairs = make_pairs(["yes", "no"] * 100, ["yes", "no"] * 100)
    assert workbench.certify(pairs).passed
    found = workbench.certify(pairs, groups={i: k // 100 for k, i in enumerate(pairs.trace_ids)})
    assert not found.passed


def test_it_says_why_not_and_what_it_is_not() -> None:
    """Too few items, a figure below, one that is undefined; and one test set only."""
    few = workbench.certify(from_confusion([[5, 0], [0, 5]]), accuracy=0.8, kappa=0.5)
    assert not few.passed
    assert "Label more" in " ".join(few.notes)
    assert workbench.certify(from_confusion([[8, 0], [0, 8]]), accuracy=0.8).passed
    assert not workbench.certify(from_confusion([[8, 0], [0, 7]]), accuracy=0.8).passed
    low = workbench.certify(from_confusion([[5, 5], [5, 5]]), accuracy=0.6)
    assert "the lower end of its interval is not above 0.6" in " ".join(low.notes)
    one_class = workbench.certify(from_confusion([[40, 0], [0, 0]]), sensitivity=0.5, kappa=0.5)
    assert not one_class.passed
    assert one_class.table["value"].isna().all()
    assert "sensitivity is undefined" in " ".join(one_class.notes)
    said = " ".join(workbench.certify(from_confusion(GOOD)).notes)
    assert "a test set of 400 items" in said
    assert "Which judge gave the verdicts is not known" in said
    assert "this use of them is not counted" in said
    assert few.looks is None
    json.dumps(one_class.to_dict(), allow_nan=False)


def test_wrong_demands_are_errors_that_say_what_to_demand() -> None:
    pairs = from_confusion(GOOD)
    for wrong in ({"accuracy": 1.0}, {"sensitivity": -0.1}, {"kappa": 80}, {"kappa": "0.6"}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            workbench.certify(pairs, **wrong)
    colours = make_pairs(["red", "green", "blue"] * 30, ["red", "green", "blue"] * 30, COLOURS)
    with pytest.raises(ArgumentError, match=r"kappa=0\.6"):
        workbench.certify(colours)
    assert workbench.certify(colours, kappa=0.6, accuracy=0.9).passed
    with pytest.raises(ArgumentError, match="weighted_kappa is defined"):
        workbench.certify(colours, weighted_kappa=0.6)
    nothing: Any = None
    with pytest.raises(ArgumentError, match="takes an Alignment or Pairs, got NoneType"):
        workbench.certify(nothing)
    with pytest.raises(TooFewPairsError, match="No pair is left"):
        workbench.certify(pairs.subset([]), accuracy=0.5)


def test_of_an_order_a_weighted_kappa_can_be_demanded() -> None:
    """A judge of numbers is hardly ever equal to people, and may be near."""
    human = [float(k % 50) for k in range(200)]
    pairs = make_pairs(human, [v + k % 3 - 1 for k, v in enumerate(human)], Scale("numeric"))
    assert not workbench.certify(pairs, kappa=0.6).passed
    found = workbench.certify(pairs, weighted_kappa=0.6)
    assert found.passed
    assert found.table.loc["weighted_kappa", "value"] == agreement(pairs).weighted_kappa
    with pytest.raises(ArgumentError, match=r"which is numeric .*Give weighted_kappa=0\.6"):
        workbench.certify(pairs)


def test_what_a_store_holds_is_shown_as_text() -> None:
    found = workbench.certify(replace(from_confusion(GOOD), name="<script>"))
    assert "<script>" not in found._repr_html_()
    assert "passed on 400 labelled items" in repr(found)
    assert "threshold" in str(found)


def test_a_judge_that_answers_only_where_it_is_sure_does_not_pass() -> None:
    """Traces without a label, or not judged yet, say nothing against it."""
    reasons = ["no verdict", "no label", "no label, no verdict", "annotators tie"] * 30
    few, many = ["the judge abstained"] * 20, ["the judge failed: no answer"] * 30
    for lost, passed in ((few, True), (many, False)):
        rows = pd.DataFrame({"reason": reasons + lost}).assign(trace_id="x")
        found = workbench.certify(replace(from_confusion(GOOD), excluded=rows), accuracy=0.8)
        assert found.passed == passed
        assert f"no usable verdict on {len(lost)} other items" in " ".join(found.notes)
        assert "30 items on which annotators differ" in " ".join(found.notes)


# -- on a store -----------------------------------------------------------------------------


def test_of_an_alignment_the_held_out_test_counts(store: str) -> None:
    """The aligned judge where it was taken, the original where it was not, each look counted."""
    judge = biased_judge()
    labelled(60, judge)
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    checks = alignment.preflight.set_index("check")["finding"]
    # Its 24 items are 12 questions with two answers each.
    assert checks["improvement that test can show"].startswith(
        "58% of 12 independent items or more"
    )
    found = workbench.certify(alignment, accuracy=0.5)
    assert (found.n, found.looks) == (len(alignment.split.test), 1)
    assert found.table.loc["accuracy", "value"] == alignment.after.accuracy
    assert found.fingerprint == fingerprint(alignment.judge)
    assert found.passed
    runs = len(mlflow.search_runs())
    again = workbench.certify(alignment, accuracy=0.5)  # the same look, which align has counted
    assert (again.looks, len(mlflow.search_runs())) == (1, runs)

    other = workbench.align(judge, None, Proposing(WORSE), progress=False)
    assert other.status == "rejected"
    original = workbench.certify(other, accuracy=0.1)
    assert original.fingerprint == fingerprint(judge)
    assert original.looks == 3  # both proposed judges and, now, the original
    assert "this is about the original judge" in " ".join(original.notes)
    assert "scored 3 different judges" in " ".join(original.notes)

    # What a rejected judge failed on says nothing against the original, and its own failures do.
    failed = replace(other, test_before=other.split.test.subset(other.split.test.trace_ids[:9]))
    assert failed.held_out.trace_ids == other.split.test.trace_ids
    assert workbench.certify(failed, accuracy=0.1).n == len(other.split.test)
    lost = pd.DataFrame({"reason": ["the judge abstained"] * 30}).assign(trace_id="x")
    shy = replace(other, pairs=replace(other.pairs, excluded=lost))
    assert not workbench.certify(shy, accuracy=0.1).passed
    tied = replace(other.pairs, excluded=lost.assign(reason="annotators tie"))
    said = workbench.certify(replace(other, pairs=tied), accuracy=0.1).notes
    assert "30 items on which annotators differ" in " ".join(said)


def test_of_pairs_those_learned_from_are_left_out(store: str) -> None:
    """The store knows what the aligned judge learned from, whoever joins verdicts and labels."""
    judge = biased_judge()
    labelled(60, judge)
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    workbench.assess(alignment.judge, progress=False)
    found = workbench.certify(workbench.pair(alignment.judge), accuracy=0.5)
    assert found.n == len(alignment.split.test)
    learned = len(alignment.split.train) + len(alignment.split.dev)
    assert f"learned from them: {learned} traces" in " ".join(found.notes)
    # What the judge fails on now says nothing either where it has learned from it.
    lost = alignment.split.train.table[["trace_id"]].assign(reason="the judge failed: no answer")
    pairs = replace(alignment.test_after, excluded=lost)
    assert workbench.certify(pairs, accuracy=0.5).passed
    with pytest.raises(TooFewPairsError, match="learned from them"):
        workbench.certify(alignment.pairs.subset(alignment.split.train.trace_ids).with_verdicts(
            dict.fromkeys(alignment.split.train.trace_ids, ("yes", "")), found.fingerprint
        ))  # fmt: skip


def test_uses_of_recorded_verdicts_are_counted_by_their_source(store: str) -> None:
    """Those of a judge elsewhere, of which nothing is known but who it was."""
    table = pd.DataFrame({"trace_id": labelled(40, biased_judge())})
    for looks, source in enumerate(["gpt-x", "gpt-y"], 1):
        verdicts = table.assign(verdict="yes" if looks == 1 else "no")
        workbench.log_verdicts(verdicts, name=NAME, source=source, value="verdict", progress=False)
        pairs = workbench.pair(NAME, source=source)
        assert pairs.source == source
        for _ in range(2):  # the same use is counted once
            found = workbench.certify(pairs, accuracy=0.1)
            assert (found.looks, found.fingerprint) == (looks, "")
        said = " ".join(found.notes)
        assert f"all verdicts of {source!r} count as those of one judge" in said
        assert "is not counted" not in said


def test_a_judge_whose_timeout_counted_once_is_known(store: str) -> None:
    """Earlier versions of the workbench gave it another fingerprint; it is the same judge."""
    judge = biased_judge(inference_params={"timeout": 60})
    labelled(60, judge)
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    earlier = fingerprint(alignment.judge, timeout=True)
    assert earlier != fingerprint(alignment.judge)
    mlflow.MlflowClient().set_tag(alignment.run_id, ALIGNED_TAG, earlier)
    workbench.assess(alignment.judge, progress=False)
    found = workbench.certify(workbench.pair(alignment.judge), accuracy=0.5)
    assert found.n == len(alignment.split.test)


def test_a_certificate_of_the_original_does_not_spoil_a_later_alignment(store: str) -> None:
    """It is no choice among judges; certificates of others are uses of their items."""
    judge = biased_judge()
    ids = labelled(60, judge)
    assert workbench.certify(workbench.pair(judge), accuracy=0.1).looks == 1
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    assert alignment.looks == 1
    third = with_instructions(judge, f"{CURED} Be strict.")
    workbench.assess(third, ids, progress=False)
    assert workbench.certify(workbench.pair(third), accuracy=0.1).looks == 3
    assert workbench.certify(alignment, accuracy=0.1).looks == 3


def test_a_wrong_demand_is_found_before_a_trace_is_judged(store: str, loopback: Any) -> None:
    """A mistyped threshold and a wrong confidence cost nothing."""
    server = loopback()
    judge: Any = biased_judge(model="openai:/any", base_url=server.url)
    labelled(10, biased_judge())
    workbench.register(judge)
    wrong: Any
    for wrong, said in (({"kapa": 0.6}, "kapa"), ({"kappa": 0.6, "confidence": 2}, "confidence=2")):
        with pytest.raises((TypeError, ArgumentError), match=said):
            check_registered(NAME, **wrong)
    assert server.requests == 0


# -- the command ----------------------------------------------------------------------------


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("workbench")), "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def in_this_process(*arguments: str) -> Result:
    """The same command, without the seconds that a new process takes to start."""
    return CliRunner().invoke(main, ["check", *arguments])


def test_the_command_passes_fails_and_cannot_tell(store: str) -> None:
    """A registered judge rates the labelled traces that it has not learned from, and is checked."""
    judge: Any = biased_judge()
    labelled(60, judge)
    workbench.register(judge)
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    workbench.register(alignment)
    assert fingerprint(load_judge(NAME)) == fingerprint(alignment.judge)
    at = ("--experiment", "test")

    done = check(NAME, *at, "--accuracy", "0.5", "--kappa", "0.3")
    assert done.returncode == 0, done.stderr
    assert f"passed on {len(alignment.split.test)} labelled items" in done.stdout
    assert "threshold" in done.stdout
    assert "Downloading" not in done.stderr
    judged = workbench.pair(alignment.judge)
    assert set(judged.trace_ids) == set(alignment.split.test.trace_ids)

    failed = in_this_process(NAME, *at, "--accuracy", "0.999")
    assert failed.exit_code == 1
    assert "Not passed: accuracy" in failed.stdout
    first = in_this_process(NAME, *at, "--version", "1", "--accuracy", "0.5")
    assert first.exit_code == 1
    assert "60 labelled items" in first.stdout

    for wrong, said in (
        (["nobody", *at], "No judge 'nobody' is registered"),
        ([NAME, "--experiment", "nowhere"], "There is no experiment 'nowhere'"),
        ([NAME, *at, "--version", "7"], "has no version 7"),
        ([NAME, *at, "--accuracy", "2"], "accuracy=2.0 must lie"),
        ([NAME, *at, "--kappa", "high"], "is not a valid float"),
    ):
        unclear = in_this_process(*wrong)
        assert unclear.exit_code == 2, unclear
        assert said in unclear.stderr
        assert "Traceback" not in unclear.stderr


def test_a_check_without_labels_or_within_too_small_a_budget_ends_with_2(store: str) -> None:
    """Neither says that the judge failed."""
    judge: Any = biased_judge()
    workbench.register(judge)
    at = ("--experiment", "test")
    none = in_this_process(NAME, *at)
    assert (none.exit_code, none.stdout) == (2, "")
    assert "No human label" in none.stderr
    labelled(20, judge)
    other = with_instructions(judge, CURED)
    workbench.register(other)
    unpaid = in_this_process(NAME, *at, "--accuracy", "3")
    assert unpaid.exit_code == 2
    assert "accuracy=3.0 must lie" in unpaid.stderr
    short = in_this_process(NAME, *at, "--budget", "5")
    assert short.exit_code == 2
    assert "BudgetError" in short.stderr
    mlflow.set_tracking_uri("nowhere://at.all")
    broken = in_this_process(NAME, *at)
    mlflow.set_tracking_uri(store)
    assert broken.exit_code == 2
    assert "nowhere" in broken.stderr


def test_rules_of_unknown_origin_are_told_of(store: str) -> None:
    """As those of a judge that was aligned in another store: no run says what it learned from."""
    rule = "Rate it no unless it gives a number."
    learned = with_instructions(biased_judge(), Candidate(TEXT).with_rules([rule], "").text)
    labelled(20, learned)
    workbench.register(learned)
    found = check_registered(NAME, accuracy=0.1)
    assert "no run in this store tells" in found.notes[0]
    workbench.register(biased_judge())
    assert "no run in this store" not in str(check_registered(NAME, accuracy=0.1))
