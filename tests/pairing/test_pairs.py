"""`pair`: which labels and verdicts count, and why a trace makes no pair."""

from __future__ import annotations

import random
import re
from typing import Any, Literal

import mlflow
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_pairs import make_pairs
from mlflow.entities import AssessmentSource, Feedback
from mlflow.entities.assessment_error import AssessmentError

import workbench
from workbench import agreement, import_traces, log_labels, log_verdicts, make_judge, pair
from workbench.errors import ArgumentError, NoLabelsError, NoVerdictsError, PairingError, ScaleError
from workbench.judging.judge import fingerprint
from workbench.judging.verdicts import FINGERPRINT_KEY
from workbench.pairing.pairs import Pairs, dataset_digest
from workbench.scale import Scale
from workbench.store.labels import AFTER_VERDICT_KEY
from workbench.store.traces import fetch_traces

GRADES = Literal["excellent", "good", "fair", "poor"]


def judge_of(instructions: str = "Rate {{ outputs }}.", **options: Any) -> Any:
    given = {"model": "openai:/m", "feedback_value_type": GRADES, **options}
    return make_judge("quality", instructions, **given)


def traces(count: int) -> list[str]:
    numbers = range(count)
    table = pd.DataFrame(
        {"q": [f"question {n % 5}" for n in numbers], "a": [f"answer {n}" for n in numbers]}
    )
    return import_traces(table, inputs="q", outputs="a", progress=False).trace_ids


def say(
    trace_id: str, value: Any, by: str | None = None, at: int | None = None, **more: Any
) -> str:
    """Log feedback with MLflow alone: a label by someone, or a verdict of a judge."""
    source = AssessmentSource("HUMAN", by) if by else more.pop("source", None)
    feedback = Feedback(
        name=more.pop("name", "quality"),
        value=value,
        source=source or AssessmentSource("LLM_JUDGE", "openai:/m"),
        create_time_ms=at,
        last_update_time_ms=at,
        **more,
    )
    return str(mlflow.log_assessment(trace_id, feedback).assessment_id)


def judged(judge: Any, trace_ids: list[str], value: Any = "good", **more: Any) -> None:
    for trace_id in trace_ids:
        say(trace_id, value, metadata={FINGERPRINT_KEY: fingerprint(judge)}, **more)


def reasons(pairs: Pairs) -> dict[str, str]:
    return dict(zip(pairs.excluded["trace_id"], pairs.excluded["reason"], strict=True))


# -- which assessments count ---


def test_verdicts_and_labels_are_joined_and_every_trace_is_somewhere(store: str) -> None:
    """One row a trace, canonical values, rationales and votes; the rest with its reason."""
    ids, judge = sorted(traces(9)), judge_of()
    judged(judge, ids[:7], "Good ", rationale="because")
    for n, value, by in [(0, "GOOD", "ana"), (1, "poor", "ana"), (2, "N/A", "ana"), (3, "7", "bo"),
                         (4, "good", "ana"), (4, "poor", "bo"), (7, "good", "bo")]:  # fmt: skip
        say(ids[n], value, by, rationale="fine")
    say(ids[0], "good", "bo", rationale="quite so")
    say(ids[1], "7", "cy")
    pairs = pair(judge)
    assert list(pairs.table.columns) == [
        "trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind",
    ]  # fmt: skip
    first, second = pairs.table.to_dict("records")
    assert (first["human"], first["judge"], first["judge_rationale"]) == ("good", "good", "because")
    assert (first["human_rationale"], first["blind"]) == ("fine / quite so", True)
    assert (first["votes"], second["votes"]) == ({"ana": "good", "bo": "good"}, {"ana": "poor"})
    told = reasons(pairs)
    assert told.pop(ids[3]).startswith("label outside the scale: '7' is not")
    assert told == {
        ids[2]: "annotators abstained", ids[4]: "annotators tie", ids[5]: "no label",
        ids[6]: "no label", ids[7]: "no verdict", ids[8]: "no label, no verdict",
    }  # fmt: skip
    assert pairs.reasons.iloc[0].tolist() == ["no label", 2]
    assert any(
        "Outside the scale, so without a vote: 2 labels on 2 traces" in note for note in pairs.notes
    )
    assert (pairs.scale.kind, pairs.fingerprint) == ("ordinal", fingerprint(judge))
    assert repr(pairs).startswith("<Pairs 'quality': 2 pairs, 7 excluded, ordinal scale>")
    assert "no verdict" in pairs._repr_html_()
    votes = pairs.votes  # a row a labelled trace, paired or not
    assert (len(votes), list(votes.columns)) == (5, ["ana", "bo"])
    assert votes.loc[ids[2]].tolist() == [None, None]
    assert votes.loc[ids[7]].tolist() == [None, "good"]
    chosen = pair(judge, fetch_traces(ids[:2]))
    assert (chosen.trace_ids, len(chosen.excluded)) == (ids[:2], 0)


def test_verdicts_without_a_mark_count_where_this_version_has_not_judged(store: str) -> None:
    """As MLflow's own walk-through logs them: without a source, or as the judge returned them."""
    ids, judge = sorted(traces(2)), judge_of(model="offline:/rubric")
    for trace_id in ids:
        mlflow.log_feedback(trace_id=trace_id, name="quality", value="good", rationale="so")
        say(trace_id, "good", "ana")
    assert list(pair(judge).table["judge_rationale"]) == ["so", "so"]
    assert any("without its mark" in note for note in pair(judge).notes)
    mlflow.log_assessment(ids[0], judge(outputs="x"))
    assert pair(judge).trace_ids == ids[:1]
    assert ["without its mark" in note for note in pair(judge).notes] == [True]
    assert reasons(pair(judge)) == {ids[1]: "verdict of another version of the judge only"}


def test_verdicts_from_when_a_timeout_counted_are_this_versions(store: str) -> None:
    """Earlier versions of the workbench gave such a judge another fingerprint."""
    ids, judge = sorted(traces(2)), judge_of(inference_params={"timeout": 9})
    for trace_id, mark in zip(ids, (fingerprint(judge, timeout=True), "other"), strict=True):
        say(trace_id, "good", "ana")
        say(trace_id, "fair", metadata={FINGERPRINT_KEY: mark})
    pairs = pair(judge)
    assert (pairs.trace_ids, pairs.fingerprint) == (ids[:1], fingerprint(judge))


def test_failures_of_a_kind_are_one_reason(store: str) -> None:
    """Whatever the model said; its words stand in the table of what is excluded."""
    ids, judge = sorted(traces(4)), judge_of()
    marked: dict[str, Any] = {"metadata": {FINGERPRINT_KEY: fingerprint(judge)}}
    cut = "the answer was cut off after"
    said = [f"{cut} 'It is'", f'{cut} "It\'s"', "no 'result' in the answer: 'Yes\\n'"]
    for trace_id, message in zip(ids[:3], said, strict=True):
        say(trace_id, "good", "ana")
        error = AssessmentError(error_code="JUDGE_FAILED", error_message=message)
        say(trace_id, None, error=error, **marked)
    say(ids[3], "good", "ana")
    judged(judge, ids[3:])
    pairs = pair(judge)
    assert dict(pairs.reasons.to_numpy().tolist()) == {
        f"the judge failed: {cut.removesuffix(' after')}": 2,
        "the judge failed: no 'result' in the answer": 1,
    }
    assert "'It is'" in reasons(pairs)[ids[0]]


def test_the_latest_usable_verdict_of_a_version_counts(store: str) -> None:
    """By the time it was given; failed, overridden and odd ones do not."""
    ids, judge = sorted(traces(7)), judge_of()
    marked: dict[str, Any] = {"metadata": {FINGERPRINT_KEY: fingerprint(judge)}}
    broken = AssessmentError(error_code="JUDGE_FAILED", error_message="no JSON")
    for trace_id in ids:
        say(trace_id, "good", "ana")
    for trace_id in ids[:3]:
        say(trace_id, None, at=2000, error=broken, **marked)
    say(ids[1], "fair", at=1000, **marked)
    say(ids[2], "poor", at=3000, **marked)
    say(ids[3], "poor", at=2000, **marked)
    say(ids[3], "fair", at=1000, **marked)
    old = say(ids[4], "good", at=3000, **marked)
    say(ids[4], "fair", at=1000, overrides=old, **marked)
    judged(judge, ids[5:6], "purple")
    judged(judge, ids[6:], "N/A")
    pairs = pair(judge)
    assert list(pairs.table["judge"]) == ["fair", "poor", "poor", "fair"]
    told = reasons(pairs)
    assert told.pop(ids[5]).startswith("verdict outside the scale: 'purple'")
    assert told == {ids[0]: "the judge failed: no JSON", ids[6]: "the judge abstained"}


def test_each_annotators_latest_label_counts_once_and_a_blind_one_first(store: str) -> None:
    """Overridden ones do not count; what was changed after the verdict replaces nothing."""
    ids, judge = sorted(traces(4)), judge_of()
    judged(judge, ids)
    old = say(ids[0], "poor", "ana")
    say(ids[0], "good", "ana", overrides=old)
    for at in (1000, 1001, 1002):
        say(ids[1], "poor", "ana", at=at)
    say(ids[1], "good", "bo", at=900)
    say(ids[1], "good", "cy", at=901)
    seen = {"metadata": {AFTER_VERDICT_KEY: "true"}}
    say(ids[2], "poor", "ana", at=1000)
    say(ids[2], "good", "ana", at=2000, **seen)
    say(ids[3], "good", "ana", at=2000, **seen)
    pairs = pair(judge)
    assert list(pairs.table["human"]) == ["good", "good", "poor", "good"]
    assert list(pairs.table["blind"]) == [True, True, True, False]
    assert pairs.notes == ("Given after their author saw the judge's verdict: 1 label.",)


def test_without_a_usable_label_it_says_what_to_do(store: str) -> None:
    """Log some, or fit the scale; names that are nothing alike are not guessed at."""
    ids, judge = traces(3), judge_of(feedback_value_type=int)
    judged(judge, ids, 4)
    say(ids[0], "good", "ana", name="politeness")
    with pytest.raises(NoLabelsError, match=r"No human label.*mlflow.log_feedback") as caught:
        pair(judge)
    assert "politeness" not in str(caught.value)
    say(ids[0], "fine", "ana")
    with pytest.raises(ScaleError, match=r"No label under 'quality'.*'fine'.*pass scale="):
        pair(judge)


# -- whose verdicts ---


def test_versions_are_never_mixed(store: str) -> None:
    """A judge is paired with what this very version said, however new another's verdict is."""
    ids, one, other = sorted(traces(3)), judge_of(), judge_of("Is {{ outputs }} kind?")
    judged(one, ids[:2], "good", at=1000)
    judged(other, ids[1:], "poor", at=2000)
    for trace_id in ids:
        say(trace_id, "good", "ana")
    assert dict(pair(one).table[["trace_id", "judge"]].values) == dict.fromkeys(ids[:2], "good")
    assert reasons(pair(one)) == {ids[2]: "verdict of another version of the judge only"}
    by_name = pair("quality")
    assert dict(by_name.table[["trace_id", "judge"]].values) == dict.fromkeys(ids[1:], "poor")
    assert by_name.fingerprint == fingerprint(other)
    assert any("2 versions of the judge" in note for note in by_name.notes)


def test_what_another_model_said_to_the_same_instructions_is_no_verdict(store: str) -> None:
    """MLflow's own verdicts are told apart by model too; where both judged, marked ones need no
    note."""
    ids, judge = sorted(traces(2)), judge_of(model="openai:/b")
    for trace_id, model in zip(ids, "ab", strict=True):
        say(trace_id, "good", "ana")
        say(
            trace_id,
            "good",
            source=AssessmentSource("LLM_JUDGE", f"openai:/{model}"),
            metadata={"guideline": judge.instructions},
        )
    pairs = pair(judge)
    assert pairs.trace_ids == ids[1:]
    assert any("1 verdict without its mark" in note for note in pairs.notes)
    assert reasons(pairs) == {ids[0]: "verdict of another version of the judge only"}
    by_name = pair("quality", scale=Scale.of(["poor", "good"]))
    assert any("2 versions" in note for note in by_name.notes)
    judged(judge, ids)
    assert (pair(judge).trace_ids, pair(judge).notes) == (ids, ())


def test_unmarked_verdicts_of_several_sources_are_not_mixed(store: str) -> None:
    """Those of the judge's own model count; else those of the source that judged last."""
    ids, judge = sorted(traces(3)), judge_of()
    for n, trace_id in enumerate(ids):
        say(trace_id, "good", "ana")
        say(trace_id, "poor", at=5000 + n, source=AssessmentSource("LLM_JUDGE", "other"))
    say(ids[0], "fair", at=1000, source=AssessmentSource("LLM_JUDGE", "openai:/m"))
    assert dict(pair(judge).table[["trace_id", "judge"]].values) == {ids[0]: "fair"}
    others = pair(judge_of(model="openai:/third"))
    assert list(others.table["judge"]) == ["poor"] * 3
    assert any("3 verdicts without its mark" in note for note in others.notes)


def test_recorded_verdicts_are_paired_by_name(store: str) -> None:
    """Those of a judge that ran elsewhere, and those of one source where there are several."""
    ids = traces(4)
    table = pd.DataFrame({"trace_id": ids, "v": ["yes", "no"] * 2, "w": ["no"] * 4})
    log_labels(table, name="quality", annotator="ana", value="v", progress=False)
    log_verdicts(table, name="quality", source="gpt-4", value="v", progress=False)
    assert (pair("quality").table["human"] == pair("quality").table["judge"]).all()
    log_verdicts(table, name="quality", source="other", value="w", progress=False)
    assert set(pair("quality", source="other").table["judge"]) == {"no"}
    assert set(pair("quality", source="gpt-4").table["judge"]) == {"no", "yes"}
    with pytest.raises(ArgumentError, match="source='gpt-5' is not known"):
        pair("quality", source="gpt-5")
    with pytest.raises(ArgumentError, match="chooses among the verdicts under a name"):
        pair(judge_of(), source="gpt-4")


def test_a_category_that_reads_like_an_abstention_is_a_category(store: str) -> None:
    """On a scale that has the value N/A itself, it is a label, a verdict and a vote."""
    ids = traces(3)
    judge = judge_of(feedback_value_type=Literal["yes", "no", "N/A"])
    for trace_id, value in zip(ids, ["yes", "N/A", "n/a"], strict=True):
        judged(judge, [trace_id], value)
        say(trace_id, "N/A", "ana")
    pairs = pair(judge)
    assert len(pairs.excluded) == 0
    assert set(pairs.table["human"]) == {"N/A"}
    assert pairs.votes["ana"].tolist() == ["N/A"] * 3
    found = agreement(pairs)
    assert (found.n, found.accuracy) == (3, pytest.approx(2 / 3))


def test_without_verdicts_it_says_what_to_run(store: str) -> None:
    """With what there is under the name from others."""
    ids, judge = traces(2), judge_of()
    say(ids[0], "good", "ana")
    with pytest.raises(NoVerdictsError, match=r"Run workbench.assess\(judge, traces\)"):
        pair(judge)
    with pytest.raises(NoVerdictsError, match=r"log_verdicts\(table, name='quality'"):
        pair("quality")
    judged(judge_of("Is {{ outputs }} kind?"), ids[:1])
    with pytest.raises(NoVerdictsError, match=r"on 1 trace there are verdicts of another version"):
        pair(judge)


# -- whose labels ---


@pytest.mark.parametrize("near", ["Quality", "qual_ity"])
def test_a_near_miss_of_the_name_is_reported(store: str, near: str) -> None:
    """With its count and a remedy: as an error without labels, as a note beside some."""
    ids, judge = traces(3), judge_of()
    judged(judge, ids)
    for trace_id in ids:
        say(trace_id, "good", "ana", name=near)
    with pytest.raises(NoLabelsError) as caught:
        pair(judge)
    assert f"3 labels are stored under {near!r}" in str(caught.value)
    assert "workbench.log_labels(table, name='quality'" in str(caught.value)
    say(ids[0], "good", "ana")
    (note,) = pair(judge).notes
    assert note.startswith(f"3 labels are stored under {near!r}")


def test_the_scale_comes_from_the_judge_or_from_what_is_seen(store: str) -> None:
    """A plain str judge takes the labels' values; a number is a number on either side."""
    ids = traces(3)
    judge = judge_of(feedback_value_type=str)
    judged(judge, ids, "good")
    for trace_id, value in zip(ids, ["GOOD", "fair", "poor"], strict=True):
        say(trace_id, value, "ana")
    pairs = pair(judge)
    assert (pairs.scale.kind, len(pairs.scale.values)) == ("ordinal", 3)
    assert (pairs.table["human"] == pairs.table["judge"]).sum() == 1
    given = Scale.of(["poor", "fair", "good", "excellent"], ordered=True)
    assert pair(judge, scale=given).scale == given

    number = judge_of(feedback_value_type=int)
    judged(number, ids, 4.0)
    for trace_id, value in zip(ids, ["4", 2, "5.0"], strict=True):
        say(trace_id, value, "ana")
    table = pair(number).table
    assert sorted(table["human"]) == [2, 4, 5]
    assert list(table["judge"]) == [4, 4, 4]
    assert (pair(number).scale.low, pair(number).scale.high) == (2, 5)


def test_verdicts_in_other_words_never_take_the_place_of_the_labels(store: str) -> None:
    """Good is no other word for correct: the labels are the scale, the verdicts lie off it."""
    ids = traces(2)
    for trace_id, value, verdict in zip(ids, ("good", "bad"), ("correct", "bad"), strict=True):
        say(trace_id, value, "ana")
        say(trace_id, verdict)
    pairs = pair("quality")
    assert (pairs.scale.values, len(pairs)) == (("bad", "good"), 1)
    assert reasons(pairs)[ids[0]].startswith("verdict outside the scale: 'correct'")


def test_ratings_out_of_five_are_numbers(store: str) -> None:
    ids = traces(3)
    for trace_id, label, verdict in zip(ids, ("4/5", "1/5", "3/5"), (4, 1, 5), strict=True):
        say(trace_id, label, "ana")
        say(trace_id, verdict)
    pairs = pair("quality")
    assert (pairs.scale.kind, pairs.scale.values) == ("ordinal", (1, 3, 4, 5))
    assert agreement(pairs).accuracy == pytest.approx(2 / 3)


def test_the_positive_value_of_unknown_words_is_said_and_may_be_named(store: str) -> None:
    """Which of spam and ham makes a false positive is nobody's secret."""
    ids = traces(2)
    for trace_id, value in zip(ids, ("spam", "ham"), strict=True):
        say(trace_id, value, "ana")
        say(trace_id, "spam")
    pairs = pair("quality")
    assert pairs.scale.positive == "ham"
    assert any("'ham' is taken as the positive value, 'spam'" in note for note in pairs.notes)
    named = pair("quality", positive="Spam")
    assert (named.scale.positive, named.notes) == ("spam", ())
    assert agreement(named).false_positives == 1
    assert pair("quality", scale=Scale.of(["spam", "ham"])).notes == ()
    judge = judge_of(feedback_value_type=Literal["spam", "ham"])
    assert pair(judge).scale.positive == "spam"
    assert any("'spam' is taken" in note for note in pair(judge).notes)
    with pytest.raises(ArgumentError, match="positive='eggs'"):
        pair("quality", positive="eggs")


@pytest.mark.parametrize("given", [None, ["tr-1"], pd.DataFrame({"name": ["a"]})])
def test_the_judge_or_its_name_comes_first(given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"judge_or_name is a .* Give a judge or its name"):
        pair(given)


def test_unknown_rules_are_errors(store: str) -> None:
    """With the annotators that there are."""
    ids, judge = traces(1), judge_of()
    judged(judge, ids)
    say(ids[0], "good", "ana")
    with pytest.raises(ArgumentError, match=r"consensus='bo'.*'majority'.*'ana'"):
        pair(judge, consensus="bo")
    with pytest.raises(ArgumentError, match="ties='coin'"):
        pair(judge, ties="coin")  # type: ignore[arg-type]
    assert len(pair(judge, consensus="ana")) == 1


# -- order of arrival ---

said = st.lists(
    st.tuples(
        st.sampled_from(["ana", "bo", "cy", ""]),  # "" is the judge
        st.sampled_from(["excellent", "good", "Poor", "N/A", "purple"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(per_trace=st.lists(said, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_order_of_arrival_never_matters(store: str, per_trace: list[Any], seed: int) -> None:
    """The same assessments in any order give the same pairs, exclusions, votes and notes."""
    judge = judge_of()
    found = [
        _trace(f"tr-{n}", [
            _feedback(f"a-{n}-{k}", who, value, at, seen, fingerprint(judge))
            for k, (who, value, at, seen) in enumerate(one)
        ])
        for n, one in enumerate(per_trace)
    ]  # fmt: skip
    outcomes = []
    shuffled = random.Random(seed)
    for _ in range(3):
        try:
            pairs = pair(judge, found, ties="latest")
            outcomes.append(
                (pairs.table.to_json(), pairs.excluded.to_json(), repr(pairs.all_votes),
                 pairs.notes)
            )  # fmt: skip
        except PairingError as error:
            outcomes.append(str(error))
        except ScaleError:
            outcomes.append("off the scale")
        shuffled.shuffle(found)
        for one in found:
            shuffled.shuffle(one.info.assessments)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def _feedback(key: str, who: str, value: str, at: int, seen: bool, mark: str) -> Feedback:
    human = AssessmentSource("HUMAN", who) if who else AssessmentSource("LLM_JUDGE", "m")
    marks = {AFTER_VERDICT_KEY: str(seen).lower()} if who else {FINGERPRINT_KEY: mark}
    made = Feedback(
        name="quality", value=value, source=human, metadata=marks, create_time_ms=at,
        rationale=key,
    )  # fmt: skip
    made.assessment_id = key
    return made


def _trace(trace_id: str, assessments: list[Feedback]) -> mlflow.entities.Trace:
    info = mlflow.entities.TraceInfo(
        trace_id=trace_id,
        trace_location=mlflow.entities.trace_location.TraceLocation.from_experiment_id("0"),
        request_time=0,
        state=mlflow.entities.TraceState.OK,
        assessments=assessments,
    )
    return mlflow.entities.Trace(info, mlflow.entities.TraceData(spans=[]))


# -- pairs that are there already ---


def test_a_subset_is_of_the_same_kind() -> None:
    """Rows and votes of the given traces, nothing excluded."""
    pairs = make_pairs(["yes", "no", "no"], ["yes"] * 3)
    part = pairs.subset(["t002", "t000", "unknown"])
    assert (part.trace_ids, list(part.votes.index)) == (["t000", "t002"], ["t000", "t002"])


def test_other_verdicts_on_the_same_labels() -> None:
    """Labels stay; a trace without a new verdict is excluded with the reason."""
    pairs = make_pairs(["yes", "no", "no"], ["yes"] * 3)
    other = pairs.with_verdicts({"t000": ("no", "x"), "t002": ("no", "y")}, "mark")
    assert list(other.table["judge"]) == ["no", "no"]
    assert list(other.table["human"]) == ["yes", "no"]
    assert (list(other.table["judge_rationale"]), other.fingerprint) == (["x", "y"], "mark")
    assert reasons(other) == {"t001": "the judge gave no usable verdict"}
    assert list(pairs.table["judge"]) == ["yes"] * 3


def test_the_digest_follows_from_items_and_labels() -> None:
    """Not from the judge's verdicts."""
    pairs = make_pairs(["yes", "no"], ["yes"] * 2)
    same = pairs.with_verdicts({"t000": ("no", ""), "t001": ("no", "")}, "")
    assert dataset_digest(pairs) == dataset_digest(same)
    assert dataset_digest(pairs) != dataset_digest(make_pairs(["yes", "yes"], ["yes"] * 2))


# -- overridden verdicts --------------------------------------------------------------------


def test_an_overridden_verdict_is_still_the_verdict(store: str) -> None:
    """MLflow's page puts a person's value in its place: a label given after a look at it."""
    table = pd.DataFrame({"q": ["a", "b", "c", "d"], "o": "x", "v": ["yes"] * 4, "ben": "no"})
    imported = workbench.import_traces(table, inputs="q", outputs="o")
    table["trace_id"] = imported.trace_ids
    workbench.log_verdicts(table, name="quality", source="m", value="v")
    person = AssessmentSource(source_type="HUMAN", source_id="ana")
    made = []
    for trace, value in zip(fetch_traces(imported), ["no", "no", "yes", "yes"], strict=True):
        (verdict,) = trace.info.assessments
        made.append(
            mlflow.override_feedback(
                trace_id=trace.info.trace_id,
                assessment_id=verdict.assessment_id,
                value=value,
                source=person,
            )
        )
    pairs = workbench.pair("quality", imported)
    assert workbench.agreement(pairs).accuracy == 0.5
    assert pairs.table["blind"].tolist() == [False] * 4
    workbench.log_labels(table[:2], name="quality", annotator="ben", value="ben")
    votes = workbench.pair("quality", imported).votes
    assert votes["ana"].tolist().count("no") == 2
    assert votes["ben"].notna().sum() == 2
    mlflow.delete_assessment(trace_id=made[3].trace_id, assessment_id=made[3].assessment_id)
    again = workbench.pair("quality", imported)
    assert (len(again), again.reasons["reason"].tolist()) == (3, ["no label"])


def test_two_writings_of_a_name_are_one_person(store: str) -> None:
    table = pd.DataFrame({"q": ["a", "b"], "o": "x", "v": "yes", "r": ["yes", "no"]})
    table["trace_id"] = workbench.import_traces(table, inputs="q", outputs="o").trace_ids
    workbench.log_verdicts(table, name="quality", source="m", value="v")
    workbench.log_labels(table[:1], name="quality", annotator="Zoe\u0308", value="r")
    workbench.log_labels(table[1:], name="quality", annotator="zo\u00eb", value="r")
    pairs = workbench.pair("quality", consensus="ZOË", ties="error")
    assert (len(pairs), pairs.votes.shape) == (2, (2, 1))


def test_labels_under_two_writings_of_a_name_are_told(store: str) -> None:
    """Of labels of the same moment, the same writing counts on every trace."""
    ids = traces(12)
    for trace_id in ids:
        say(trace_id, "good")
        say(trace_id, "good", "Ana", 1)
        say(trace_id, "poor", "ana", 1)
    pairs = pair("quality")
    assert set(pairs.table["human"]) == {"poor"}
    assert "'Ana' and 'ana' are taken as one person, whose latest label counts." in pairs.notes


def test_what_is_stored_under_the_name_and_is_no_label_is_told(store: str) -> None:
    (trace_id,) = workbench.import_traces(
        pd.DataFrame({"q": ["a"], "o": "x"}), inputs="q", outputs="o"
    ).trace_ids
    person = AssessmentSource(source_type="HUMAN", source_id="ana")
    mlflow.log_expectation(trace_id=trace_id, name="quality", value="yes", source=person)
    mlflow.log_feedback(trace_id=trace_id, name="quality", value="yes")
    mlflow.log_feedback(trace_id=trace_id, name="quality", error=ValueError("no"), source=person)
    with pytest.raises(NoLabelsError) as caught:
        workbench.pair("quality", [trace_id])
    for words in (
        "1 of 3 .* is an expectation",
        "1 of 3 .* source CODE",
        "1 of 3 .* holds an error",
    ):
        assert re.search(words, str(caught.value))
    workbench.import_traces(
        pd.DataFrame({"q": ["b"], "o": "x", "l": "yes", "j": "no"}),
        inputs="q", outputs="o", labels={"ana": "l"}, label_name="quality",
    )  # fmt: skip
    traces = mlflow.search_traces(return_type="list")
    table = pd.DataFrame({"trace_id": [t.info.trace_id for t in traces], "v": ["no", "no"]})
    workbench.log_verdicts(table, name="quality", source="model", value="v")
    mlflow.log_feedback(trace_id=table.trace_id[0], name="quality", value="yes")
    pairs = workbench.pair("quality")
    assert pairs.table["judge"].tolist() == ["no"]
    assert any("source CODE" in note for note in pairs.notes)


# -- equal items ----------------------------------------------------------------------------


def test_equal_items_stay_on_one_side_and_equal_inputs_are_told(store: str) -> None:
    n = 40
    table = pd.DataFrame(
        {"q": [f"q{i // 4}" for i in range(n)], "o": [f"o{i // 2}" for i in range(n)],
         "v": "yes", "r": ["yes", "no"] * (n // 2)}
    )  # fmt: skip
    table["trace_id"] = workbench.import_traces(table, inputs="q", outputs="o").trace_ids
    workbench.log_verdicts(table, name="quality", source="m", value="v")
    workbench.log_labels(table, name="quality", annotator="ana", value="r")
    pairs = workbench.pair("quality")
    split = pairs.split(seed=1)
    content = dict(zip(table["trace_id"], table["o"], strict=True))
    parts = [{content[i] for i in part.trace_ids} for part in (split.train, split.dev, split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert "of test also in train or dev" in split.notes[0]
    assert "q0" in repr(pairs)
    assert ">o0<" in pairs._repr_html_()
    groups = {i: f" {k // 4}.0 " if k % 2 else k // 4 for k, i in enumerate(table["trace_id"])}
    assert pairs.split(seed=1, groups=groups).notes == ()
