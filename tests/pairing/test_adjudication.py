"""Where people differ, what was decided, and what becomes of it in pairs."""

from __future__ import annotations

import re
from typing import Any, Literal

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback

import workbench
from workbench.errors import ArgumentError, PairingError, ScaleError, StoreError
from workbench.simba.optimizer import labelled_items
from workbench.store.labels import DECISION_KEY, RUBRIC_KEY, decision_feedback, label_records
from workbench.store.traces import fetch_traces

NAME = "quality"
LADDER = Literal["excellent", "good", "fair", "poor"]

# What the annotators say about traces 0 to 5.
ANA = ["good", "good", "poor", "fair", "N/A", "good"]
BEN = ["good", "fair", "good", "N/A", "fair", None]


@pytest.fixture
def ids(store: str) -> list[str]:
    return import_and_label()


def import_and_label() -> list[str]:
    table = pd.DataFrame({"q": list("abcdef"), "a": list("123456")})
    trace_ids = list(workbench.import_traces(table, inputs=["q"], outputs="a").trace_ids)
    table = table.assign(trace_id=trace_ids, ana=ANA, ben=BEN, judge=["good"] * 5 + ["poor"])
    table["why"] = [f"since {letter}" for letter in "abcdef"]
    workbench.log_labels(table, name=NAME, annotator="Ana", value="ana", rationale="why")
    workbench.log_labels(table, name=NAME, annotator="Ben", value="ben")
    workbench.log_verdicts(table, name=NAME, source="m", value="judge")
    return trace_ids


def paired(**options: Any) -> dict[str, Any]:
    pairs = workbench.pair(NAME, **options)
    return dict(zip(pairs.table["trace_id"], pairs.table["human"], strict=True))


def excluded(pairs: workbench.Pairs) -> dict[str, str]:
    return dict(zip(pairs.excluded["trace_id"], pairs.excluded["reason"], strict=True))


def test_labels_and_reasons_stand_side_by_side(ids: list[str]) -> None:
    """Where people differ, the farthest apart first; an abstention differs from nothing."""
    table = workbench.disagreements(NAME)
    page, text = table.head()._repr_html_(), repr(table)
    for shown in (page, text):
        assert str(table.index[0]) not in shown
        assert shown.index("inputs") < shown.index("label ") < shown.index("distance")
        assert not {"nan", "NaN", "None"} & set(re.findall(r"\w+", shown))
    assert "text-align: left" in page
    assert list(table.index) == [ids[2], ids[1]]
    assert table["label"].to_dict("list") == {"Ana": ["poor", "good"], "Ben": ["good", "fair"]}
    assert list(table["rationale"]["Ana"]) == ["since c", "since b"]
    assert list(table["rationale"]["Ben"]) == [None, None]
    assert list(table["distance"]) == [1, 0.5]
    assert table["decision"].isna().all().all()
    judge = workbench.make_judge(NAME, "Rate {{ outputs }}.", feedback_value_type=LADDER)
    # On a scale with more values than were seen the same difference is smaller.
    assert list(workbench.disagreements(judge)["distance"]) == pytest.approx([2 / 3, 1 / 3])
    nothing = workbench.disagreements("other")
    assert len(nothing) == 0
    assert list(nothing.columns.get_level_values(0).unique()) == ["item", "distance", "decision"]


def test_a_decision_is_recorded_beside_the_labels(ids: list[str]) -> None:
    made = workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale=" between ")
    assert (made.trace_id, made.by, made.value, made.rationale) == (
        ids[2], "Chloe", "fair", "between",
    )  # fmt: skip
    (trace,) = fetch_traces([ids[2]], spans=False)
    assert [x.annotator for x in label_records([trace], NAME)] == ["Ana", "Ben"]
    assert len(decision_feedback(trace, NAME)) == 1
    again = workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale="between ")
    assert again == made
    (trace,) = fetch_traces([ids[2]], spans=False)
    assert len(decision_feedback(trace, NAME)) == 1  # the same again writes nothing
    table = workbench.disagreements(NAME)
    assert list(table.index) == [ids[1], ids[2]]  # what is decided comes last
    assert list(table.loc[ids[2], "decision"]) == ["fair", "Chloe", "between"]
    assert list(workbench.disagreements(NAME, decided=False).index) == [ids[1]]


def test_a_decision_records_the_rubric_that_it_was_made_under(ids: list[str]) -> None:
    """As a label in a panel does; without a rubric there is nothing to record."""
    assert workbench.adjudicate(ids[1], "fair", name=NAME, by="Chloe").rubric_version is None
    workbench.set_rubric(NAME, "First thoughts.")
    workbench.set_rubric(NAME, "Says the fact.")
    made = workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe")
    assert made.rubric_version == 2
    (trace,) = fetch_traces([ids[2]], spans=False)
    (stored,) = decision_feedback(trace, NAME)
    assert stored.metadata[RUBRIC_KEY] == "2"
    assert workbench.rubric_history(NAME).version_of(made) == 2


def test_the_same_decision_is_recorded_again_under_a_new_rubric(ids: list[str]) -> None:
    """And where the verdict is said to have been seen; a value of pandas is a plain one."""
    rows = pd.Series([1, 2])
    workbench.set_rubric("grade", "First thoughts.")
    for seen, version in ((False, 1), (False, 2), (True, 2), (True, 2)):
        if version == 2:
            workbench.set_rubric("grade", "Says the fact.")
        made = workbench.adjudicate(ids[2], rows[1], name="grade", by="Ana", after_verdict=seen)
        assert (made.value, made.rubric_version, made.after_verdict) == (2, version, seen)
    assert workbench.adjudicate(ids[2], rows[1], name="grade", by="Ana").after_verdict
    (trace,) = fetch_traces([ids[2]], spans=False)
    assert len(decision_feedback(trace, "grade")) == 3


def test_a_later_decision_replaces_the_earlier(ids: list[str]) -> None:
    """Even when the later one's clock is behind; back and forth each counts."""
    ahead = Feedback(
        name=NAME,
        value="fair",
        source=AssessmentSource(source_type="HUMAN", source_id="Chloe"),
        metadata={DECISION_KEY: "true"},
        create_time_ms=2**42,
    )
    mlflow.log_assessment(ids[2], ahead)
    for value, by in (("good", "Dan"), ("fair", "Chloe"), ("good", "Dan")):
        assert workbench.adjudicate(ids[2], value, name=NAME, by=by).value == value
        assert paired()[ids[2]] == value
    (trace,) = fetch_traces([ids[2]], spans=False)
    history = [(one.value, one.valid is not False) for one in decision_feedback(trace, NAME)]
    assert history == [("fair", False), ("good", False), ("fair", False), ("good", True)]


def test_pairs_take_the_decision_for_the_votes(ids: list[str]) -> None:
    assert paired() == {ids[0]: "good", ids[3]: "fair", ids[4]: "fair", ids[5]: "good"}
    with pytest.raises(PairingError, match="Adjudicate it"):
        workbench.pair(NAME, ties="error")
    workbench.adjudicate(ids[1], "good", name=NAME, by="Chloe")
    workbench.adjudicate(ids[2], "poor", name=NAME, by="Chloe", rationale="it lies")
    workbench.adjudicate(ids[0], "poor", name=NAME, by="Chloe")
    for consensus in ("majority", "unanimous", "latest"):
        decided = paired(consensus=consensus)
        assert [decided[ids[k]] for k in (0, 1, 2, 3)] == ["poor", "good", "poor", "fair"]
    pairs = workbench.pair(NAME, ties="error")  # nothing is tied any more
    table = pairs.table.set_index("trace_id")
    assert table.loc[ids[2], "votes"] == {"Ana": "poor", "Ben": "good"}
    assert table.loc[ids[2], "human_rationale"] == "it lies"
    assert table.loc[ids[1], "human_rationale"] == "since b"  # of those who said so


def test_a_decision_stands_where_there_is_no_label(ids: list[str]) -> None:
    source = AssessmentSource(source_type="HUMAN", source_id="x")
    other = mlflow.log_feedback(trace_id=ids[5], name="other", value="good", source=source)
    workbench.adjudicate(ids[5], "fair", name="other", by="Chloe")
    mlflow.delete_assessment(trace_id=ids[5], assessment_id=other.assessment_id)
    table = pd.DataFrame({"trace_id": ids, "v": ["good"] * 6})
    workbench.log_verdicts(table, name="other", source="m", value="v")
    pairs = workbench.pair("other")
    assert list(pairs.table["human"]) == ["fair"]
    assert pairs.votes.empty


def test_what_is_learned_from_is_what_was_decided(ids: list[str]) -> None:
    judge = workbench.make_judge(NAME, "Rate {{ outputs }}.", feedback_value_type=LADDER)
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale="it lies")
    workbench.adjudicate(ids[1], "good", name=NAME, by="Chloe")
    items, _ = labelled_items(judge, fetch_traces(ids), least=1)
    by_id = {item.example.trace_id: item for item in items}
    assert (by_id[ids[2]].label, by_id[ids[2]].rationale) == ("fair", "it lies")
    assert len(items) == 6


def test_a_decision_changed_in_mlflows_page_is_a_decision_still(ids: list[str]) -> None:
    """The page overrides, and keeps no metadata."""
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe")
    (trace,) = fetch_traces([ids[2]], spans=False)
    (stored,) = decision_feedback(trace, NAME)
    source = AssessmentSource(source_type="HUMAN", source_id="chloe")
    mlflow.override_feedback(
        trace_id=ids[2], assessment_id=stored.assessment_id, value="good", source=source
    )
    assert paired()[ids[2]] == "good"
    assert list(workbench.pair(NAME).votes.columns) == ["Ana", "Ben"]


def test_the_label_schema_tells_the_scale(ids: list[str]) -> None:
    """What lies off it is refused, and pairs without a typed judge are on it."""
    from mlflow.genai.label_schemas import InputCategorical, create_label_schema

    options = ["poor", "fair", "good", "excellent"]
    create_label_schema(NAME, type="feedback", input=InputCategorical(options=options))
    with pytest.raises(ScaleError, match="'superb' is not on the scale"):
        workbench.adjudicate(ids[2], "superb", name=NAME, by="Chloe")
    assert workbench.pair(NAME).scale.values == tuple(options)
    assert workbench.disagreements(NAME)["distance"].iloc[0] == pytest.approx(2 / 3)


def test_what_cannot_be_recorded_is_said(ids: list[str]) -> None:
    with pytest.raises(ArgumentError, match="by=' '"):
        workbench.adjudicate(ids[0], "good", name=NAME, by=" ")
    with pytest.raises(ArgumentError, match="cannot be decided on"):
        workbench.adjudicate(ids[0], object(), name=NAME, by="Chloe")
    with pytest.raises(StoreError, match="not in the store"):
        workbench.adjudicate("tr-" + "0" * 32, "good", name=NAME, by="Chloe")
    for nothing in (None, " ", float("nan"), pd.NA):
        with pytest.raises(ScaleError, match="is missing"):
            workbench.adjudicate(ids[0], nothing, name=NAME, by="Chloe")
    with pytest.raises(ScaleError, match="A rating is one value"):
        workbench.adjudicate(ids[0], ["good"], name=NAME, by="Chloe")
    assert not decision_feedback(fetch_traces([ids[0]], spans=False)[0], NAME)
    assert workbench.disagreements(NAME)["decision"].isna().all().all()


def test_decisions_that_make_no_pair_or_are_not_blind(ids: list[str]) -> None:
    """What cannot be judged, what lies off the scale, and what was decided with the verdict."""
    workbench.adjudicate(ids[0], "N/A", name=NAME, by="Chloe")
    workbench.adjudicate(ids[1], "superb", name=NAME, by="Chloe")
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", after_verdict=True)
    pairs = workbench.pair(NAME, scale=workbench.Scale.from_type(LADDER))
    why = excluded(pairs)
    assert why[ids[0]] == "adjudicated as one that cannot be judged"
    assert "decision outside the scale: 'superb'" in why[ids[1]]
    blind = pairs.table.set_index("trace_id")["blind"]
    assert (blind[ids[2]], blind[ids[3]]) == (False, True)


def test_decisions_make_pairs_though_no_label_is_on_the_scale(ids: list[str]) -> None:
    scale = workbench.Scale.of(["gut", "schlecht"])
    judged = pd.DataFrame({"trace_id": ids, "judge": ["gut", "schlecht"] * 3})
    workbench.log_verdicts(judged, name=NAME, source="m", value="judge")
    with pytest.raises(ScaleError, match=r"First: label .* 'schlecht'\. Give the judge a"):
        workbench.pair(NAME, scale=scale)
    workbench.adjudicate(ids[0], "gut", name=NAME, by="Chloe")
    pairs = workbench.pair(NAME, scale=scale)
    assert (list(pairs.table["human"]), len(pairs.excluded)) == (["gut"], 5)
    assert any("without a vote" in note for note in pairs.notes)


def test_labels_stay_as_they_were(ids: list[str]) -> None:
    """Also those of an annotator who decides, in votes, agreement and under a name of one's own."""
    before = workbench.annotator_agreement(workbench.pair(NAME))
    for trace_id in ids:
        workbench.adjudicate(trace_id, "fair", name=NAME, by="Ana", rationale="since c")
    assert (paired()[ids[2]], paired(consensus="Ana")[ids[2]]) == ("fair", "poor")
    pairs = workbench.pair(NAME)
    assert pairs.votes.loc[ids[2]].to_dict() == {"Ana": "poor", "Ben": "good"}
    pd.testing.assert_frame_equal(workbench.annotator_agreement(pairs).pairwise, before.pairwise)
    again = pd.DataFrame({"trace_id": [ids[0]], "v": ["good"], "why": ["since a"]})
    logged = workbench.log_labels(again, name=NAME, annotator="Ana", value="v", rationale="why")
    assert (logged.written, logged.present) == (0, 1)
