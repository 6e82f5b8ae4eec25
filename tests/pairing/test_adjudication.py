"""Where people differ, what was decided, and what becomes of it in pairs."""

from __future__ import annotations

import json
from typing import Any, Literal

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback

import workbench
from workbench.errors import ArgumentError, PairingError, ScaleError, StoreError
from workbench.pairing.adjudication import VOTES_KEY
from workbench.simba.items import labelled_items
from workbench.store.assessments import DECISION_KEY, RUBRIC_KEY
from workbench.store.labels import decision_feedback, label_records
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
    assert list(table.index) == [ids[2], ids[1]]
    assert table["label"].to_dict("list") == {"Ana": ["poor", "good"], "Ben": ["good", "fair"]}
    assert list(table["rationale"]["Ana"]) == ["since c", "since b"]
    assert list(table["rationale"]["Ben"]) == [None, None]
    assert list(table["distance"]) == [1, 0.5]
    assert table["decision"].isna().all().all()


def test_differences_on_the_judges_own_scale(ids: list[str]) -> None:
    """A scale with more values than were seen makes the same difference smaller."""
    judge = workbench.make_judge(NAME, "Rate {{ outputs }}.", feedback_value_type=LADDER)
    table = workbench.disagreements(judge)
    assert list(table["distance"]) == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_two_writings_of_one_value_are_no_difference(store: str) -> None:
    table = pd.DataFrame({"q": ["a", "b"], "o": ["1", "2"], "x": ["Yes", "no"], "y": ["true", "N"]})
    table["trace_id"] = workbench.import_traces(table, inputs=["q"], outputs="o").trace_ids
    workbench.log_labels(table, name=NAME, annotator="ana", value="x")
    workbench.log_labels(table, name=NAME, annotator="ben", value="y")
    assert workbench.disagreements(NAME).empty


def test_nothing_to_differ_on_is_an_empty_table(store: str) -> None:
    table = workbench.disagreements(NAME)
    assert len(table) == 0
    assert list(table.columns.get_level_values(0).unique()) == ["distance", "decision"]


def test_a_decision_is_recorded_beside_the_labels(ids: list[str]) -> None:
    made = workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale=" between ")
    assert (made.trace_id, made.by, made.value, made.rationale) == (
        ids[2], "Chloe", "fair", "between",
    )  # fmt: skip
    (trace,) = fetch_traces([ids[2]], spans=False)
    assert [x.annotator for x in label_records([trace], NAME)] == ["Ana", "Ben"]
    (stored,) = decision_feedback(trace, NAME)
    assert json.loads(stored.metadata[VOTES_KEY]) == {"Ana": "poor", "Ben": "good"}
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


def test_deciding_the_same_again_writes_nothing(ids: list[str]) -> None:
    first = workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe")
    assert workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale=" ") == first
    (trace,) = fetch_traces([ids[2]], spans=False)
    assert len(decision_feedback(trace, NAME)) == 1


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


def test_an_annotator_may_decide_and_keeps_their_own_label(ids: list[str]) -> None:
    """Also where the decision says what the label says."""
    workbench.adjudicate(ids[2], "poor", name=NAME, by="Ana", rationale="since c")
    assert paired()[ids[2]] == "poor"
    workbench.adjudicate(ids[1], "fair", name=NAME, by="Ana")
    votes = workbench.pair(NAME).votes
    assert votes.loc[ids[2]].to_dict() == {"Ana": "poor", "Ben": "good"}
    assert votes.loc[ids[1]].to_dict() == {"Ana": "good", "Ben": "fair"}


def test_labels_that_are_logged_again_take_no_notice_of_decisions(ids: list[str]) -> None:
    workbench.adjudicate(ids[0], "poor", name=NAME, by="Ana")
    again = pd.DataFrame({"trace_id": [ids[0]], "v": ["good"], "why": ["since a"]})
    logged = workbench.log_labels(again, name=NAME, annotator="Ana", value="v", rationale="why")
    assert (logged.written, logged.present) == (0, 1)


def test_pairs_take_the_decision_for_the_votes(ids: list[str]) -> None:
    assert paired() == {ids[0]: "good", ids[3]: "fair", ids[4]: "fair", ids[5]: "good"}
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
    assert "On 3 traces an adjudicator's decision takes the votes' place." in pairs.notes


def test_a_named_annotators_labels_are_not_decided_on(ids: list[str]) -> None:
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe")
    assert paired(consensus="Ana")[ids[2]] == "poor"
    assert paired(consensus="Ben")[ids[2]] == "good"


def test_a_tie_asks_for_a_decision(ids: list[str]) -> None:
    with pytest.raises(PairingError, match="Adjudicate it"):
        workbench.pair(NAME, ties="error")


def test_what_cannot_be_judged_makes_no_pair(ids: list[str]) -> None:
    workbench.adjudicate(ids[0], "N/A", name=NAME, by="Chloe")
    why = excluded(workbench.pair(NAME))
    assert why[ids[0]] == "adjudicated as one that cannot be judged"


def test_a_decision_off_the_scale_makes_no_pair(ids: list[str]) -> None:
    judge = workbench.make_judge(NAME, "Rate {{ outputs }}.", feedback_value_type=LADDER)
    workbench.adjudicate(ids[0], "superb", name=NAME, by="Chloe")
    pairs = workbench.pair(NAME, scale=workbench.Scale.from_type(judge.feedback_value_type))
    assert "decision outside the scale: 'superb'" in excluded(pairs)[ids[0]]


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


def test_agreement_of_annotators_counts_no_decision(ids: list[str]) -> None:
    before = workbench.annotator_agreement(workbench.pair(NAME))
    for trace_id in ids:
        workbench.adjudicate(trace_id, "good", name=NAME, by="Chloe")
    after = workbench.annotator_agreement(workbench.pair(NAME))
    assert after.annotators == before.annotators == ("Ana", "Ben")
    pd.testing.assert_frame_equal(after.pairwise, before.pairwise)


def test_what_is_learned_from_is_what_was_decided(ids: list[str]) -> None:
    judge = workbench.make_judge(NAME, "Rate {{ outputs }}.", feedback_value_type=LADDER)
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", rationale="it lies")
    workbench.adjudicate(ids[1], "good", name=NAME, by="Chloe")
    items, _ = labelled_items(judge, fetch_traces(ids), least=1)
    by_id = {item.example.trace_id: item for item in items}
    assert (by_id[ids[2]].label, by_id[ids[2]].rationale) == ("fair", "it lies")
    assert len(items) == 6


def test_a_decision_after_the_verdict_was_seen_is_not_blind(ids: list[str]) -> None:
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe", after_verdict=True)
    table = workbench.pair(NAME).table.set_index("trace_id")
    assert not table.loc[ids[2], "blind"]
    assert table.loc[ids[0], "blind"]


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


def test_all_of_it_over_a_server(server: str) -> None:
    ids = import_and_label()
    workbench.adjudicate(ids[2], "fair", name=NAME, by="Chloe")
    workbench.adjudicate(ids[2], "good", name=NAME, by="Chloe", rationale="on reflection")
    assert workbench.adjudicate(
        ids[2], "good", name=NAME, by="Chloe", rationale="on reflection"
    ).value == "good"  # fmt: skip
    assert paired()[ids[2]] == "good"
    assert list(workbench.disagreements(NAME)["decision"]["by"]) == [None, "Chloe"]


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
    assert workbench.disagreements(NAME)["decision"].isna().all().all()
