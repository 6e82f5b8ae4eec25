"""Alignment over a real store: statuses, gate, errors, what is logged and what is kept."""

from __future__ import annotations

import http.server
import json
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlflow
import pandas as pd
import pytest
from clarity import CURED, NAME, TEXT, WORSE, Proposing, biased_judge, labelled, table
from hypothesis import assume, given
from hypothesis import strategies as st
from mlflow.utils.file_utils import local_file_uri_to_path

import workbench
from workbench.alignment.heldout import decide, read_data, score_held_out, split_pairs
from workbench.alignment.result import Alignment
from workbench.alignment.runs import Lineage
from workbench.compat import options
from workbench.errors import (
    ArgumentError,
    BudgetError,
    ModelError,
    NoLabelsError,
    NoVerdictsError,
    PairingError,
    StoreError,
    TooFewPairsError,
    WorkbenchError,
)
from workbench.judging.judge import fingerprint, with_instructions
from workbench.models.budget import Budget, Usage
from workbench.models.offline import MODEL
from workbench.models.offline.provider import answer
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.settings import most_calls
from workbench.store.traces import Example, item_digest


@pytest.fixture
def judge() -> Any:
    return biased_judge()


def test_a_biased_judge_is_improved_and_proven_on_held_out_pairs(store: str, judge: Any) -> None:
    """SIMBA cures a systematic error, and the gain is measured on pairs it never saw."""
    labelled(60, judge)
    alignment = workbench.align(judge, groups="part", progress=False)
    assert alignment.status == "improved"
    assert alignment.after.accuracy > alignment.before.accuracy
    assert alignment.after.accuracy >= 0.9
    parts = [
        set(p.trace_ids) for p in (alignment.split.train, alignment.split.dev, alignment.split.test)
    ]
    assert sum(map(len, parts)) == 60
    assert set().union(*parts) == set(alignment.pairs.trace_ids)
    assert set(alignment.test_after.trace_ids) == parts[2]
    assert all(set(ids) <= parts[0] for ids in alignment.evidence.values())
    folder = Path(mlflow.artifacts.download_artifacts(run_id=alignment.run_id))
    assert alignment.evidence
    assert json.loads((folder / "evidence.json").read_text()) == alignment.evidence
    assert "improved" in repr(alignment)
    assert "<script" not in alignment._repr_html_()


def test_fewer_labels_are_learned_from_and_tested_on_the_same(store: str, judge: Any) -> None:
    """For a seed; more labels include the fewer, stratified, and a run says how many there were."""
    labelled(60, judge)
    found = {
        n: workbench.align(judge, None, Noting(), n_labels=n, progress=False).split
        for n in (10, 20, None, 500)
    }
    learned = {n: {*s.train.trace_ids, *s.dev.trace_ids} for n, s in found.items()}
    assert len({tuple(split.test.trace_ids) for split in found.values()}) == 1
    assert (len(learned[10]), len(learned[20])) == (10, 20)
    assert learned[10] < learned[20] < learned[None] == learned[500]
    assert set(found[10].train.table["human"]) == set(found[None].train.table["human"])
    assert "20 of 36 labels that could be learned from" in found[20].notes[-1]
    assert "36 of 36 labels" in found[500].notes[-1]
    assert found[500].digest == found[None].digest
    wrong: Any
    for wrong in (9, 20.5, "20"):
        with pytest.raises(ArgumentError, match=f"n_labels={wrong!r} must be a whole number"):
            workbench.align(judge, None, Noting(), n_labels=wrong, progress=False)


def test_figures_compare_alignments(store: str, judge: Any) -> None:
    """Held-out accuracy and kappa with their ends, what they are held to, and the price."""
    labelled(60, judge)
    alignment = workbench.align(judge, None, Noting(), n_labels=20, progress=False)
    figures = alignment.figures()
    after, ends = alignment.after, ("after_low", "after_high")
    assert figures["after"] == after.accuracy
    assert tuple(figures[end] for end in ends) == after.accuracy_interval
    assert figures["before_kappa"] == alignment.before.kappa
    assert (figures["n"], figures["labels"]) == (alignment.comparison.n, 20)
    assert figures["baseline"] == alignment.before.baseline
    assert figures["usd_per_1000"] == 0.0
    assert figures["result"] == alignment.headline
    json.dumps(figures)


@pytest.mark.parametrize("groups", [None, "part"])
def test_what_belongs_together_stays_on_one_side(
    store: str, judge: Any, groups: str | None
) -> None:
    """The traces of a group, and without groups the answers to one question."""
    labelled(60, judge)
    found = workbench.align(judge, None, Proposing(CURED), groups=groups, progress=False)
    part_of = {i: e.tags["part"] for i, e in found.examples.items()}
    split = found.split
    parts = [{part_of[i] for i in p.trace_ids} for p in (split.train, split.dev, split.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


def test_what_a_judge_learned_on_is_never_tested_on(store: str, judge: Any) -> None:
    """Aligning an aligned judge again tests on other traces; without any it says so."""
    ids = labelled(60, judge)
    first = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    learned = {*first.split.train.trace_ids, *first.split.dev.trace_ids}
    workbench.assess(first.judge, ids, progress=False)
    second = workbench.align(first.judge, ids, optimizer=Proposing(WORSE), seed=1, progress=False)
    assert not learned & set(second.split.test.trace_ids)
    with pytest.raises(ArgumentError, match="no judge before this one learned from is left for"):
        workbench.align(first.judge, sorted(learned), progress=False)
    for wrong in (0, 1.2):
        with pytest.raises(ArgumentError, match=f"test_size={wrong} must lie in"):
            workbench.align(first.judge, ids, test_size=wrong, progress=False)


class Shy(Proposing):
    """Proposes a judge that answers only on a few items, all of them right."""

    def align(self, judge: Any, traces: list[Any]) -> Any:
        proposed = with_instructions(judge, CURED)
        kind = type(proposed)

        class Sparing(kind):  # type: ignore[misc, valid-type]
            def __call__(self, **item: Any) -> Any:
                feedback = super().__call__(**item)
                if "10" not in str(item["outputs"]) and "no" in str(item["outputs"]):
                    feedback.value = "N/A"
                return feedback

        return Sparing(**options(proposed))


def test_a_judge_that_hardly_answers_is_rejected(store: str, judge: Any) -> None:
    """Being right on the few items that it answers does not pass the gate."""
    labelled(60, judge)
    alignment = workbench.align(judge, optimizer=Shy(CURED), progress=False)
    assert alignment.status == "rejected"
    assert "no usable verdict" in alignment.reason


def test_a_budget_that_cannot_pay_for_the_test_is_refused(store: str, judge: Any) -> None:
    """Before anything is learned, and with the calls that the test would take."""
    labelled(60, judge)
    with pytest.raises(BudgetError, match=r"27 calls.*kept back for the held-out test"):
        workbench.align(judge, budget=27, progress=False)
    assert mlflow.search_runs().empty


def test_a_test_that_the_budget_ends_counts_what_was_answered(store: str, judge: Any) -> None:
    """It says why the others are missing, and so few do not pass the gate."""
    labelled(40, judge)
    data = read_data(judge, None, None, 0.4, 0)
    tested = score_held_out(data, with_instructions(judge, CURED), Budget(5))
    assert tested.comparison.n == len(tested.verdicts) == tested.paid.requests == 5
    assert "since the budget was spent" in tested.notes[0]
    assert decide("better", tested, data.split.train)[0] == "rejected"


def test_a_foreign_optimizer_sees_the_consensus(store: str, judge: Any) -> None:
    """It learns from the label that the judge is tested on, not from one annotator's."""
    ids = labelled(40, judge)
    for who in ("ben", "cleo"):
        rows = table(40).assign(trace_id=ids)
        rows["ana"] = ["no" if v == "yes" else "yes" for v in rows["ana"]]
        workbench.log_labels(rows, name=NAME, annotator=who, value="ana", progress=False)
    optimizer = Proposing(CURED)
    alignment = workbench.align(judge, optimizer=optimizer, progress=False)
    wanted = dict(
        zip(alignment.pairs.table["trace_id"], alignment.pairs.table["human"], strict=True)
    )
    for trace in optimizer.seen:
        human = [a for a in trace.info.assessments if a.source.source_type == "HUMAN"]
        assert [a.feedback.value for a in human] == [wanted[trace.info.trace_id]]


def test_what_an_optimizer_does_is_no_trace_to_be_labelled(store: str, judge: Any) -> None:
    """Though dspy's calls are traced, which MLflow's optimizers make."""

    class Traced(Proposing):
        def align(self, judge: Any, traces: list[Any]) -> Any:
            with mlflow.start_span("a call of dspy"):
                return super().align(judge, traces)

    labelled(40, judge)
    workbench.align(judge, optimizer=Traced(CURED), progress=False)
    mlflow.flush_trace_async_logging()
    assert len(mlflow.search_traces(return_type="list")) == 40


def test_any_optimizer_is_held_to_the_same_gate(store: str, judge: Any) -> None:
    """An optimizer sees train and dev only; a better proposal passes, a worse one is rejected."""
    labelled(40, judge)
    better = Proposing(CURED)
    alignment = workbench.align(judge, optimizer=better, progress=False)
    assert alignment.status == "improved"
    assert alignment.judge.instructions == CURED
    seen = {t.info.trace_id for t in better.seen}
    assert not seen & set(alignment.split.test.trace_ids)
    assert len(seen) == len(alignment.split.train) + len(alignment.split.dev)

    rejected = workbench.align(judge, optimizer=Proposing(WORSE), progress=False)
    assert rejected.status == "rejected"
    assert rejected.judge is judge
    assert rejected.after.accuracy < rejected.before.accuracy or rejected.after.accuracy == 0

    same = workbench.align(judge, optimizer=Proposing(TEXT), progress=False)
    assert same.status == "unchanged"
    assert same.judge is judge
    assert same.comparison.changes["accuracy"][0] == 0


def test_gates(store: str, judge: Any) -> None:
    """gate='none' takes whatever comes, an unknown gate is named."""
    labelled(40, judge)
    taken = workbench.align(judge, optimizer=Proposing(WORSE), gate="none", progress=False)
    assert taken.judge.instructions == WORSE
    assert (taken.status, taken.headline) == ("improved", "not better (gate off)")
    strict = workbench.align(judge, optimizer=Proposing(CURED), gate="significant", progress=False)
    assert strict.status == ("improved" if strict.comparison.significant else "rejected")
    with pytest.raises(ArgumentError, match="better"):
        workbench.align(judge, gate="best")  # type: ignore[arg-type]


def test_mlflows_own_call_works(store: str, judge: Any) -> None:
    """Judge.align(traces, optimizer=SIMBA()) returns a plain judge with every option kept."""
    labelled(30, judge)
    traces = mlflow.search_traces(return_type="list")
    optimizer = workbench.SIMBA(progress=False)
    aligned = judge.align(traces, optimizer=optimizer)
    assert aligned.instructions != judge.instructions
    assert aligned.instructions.startswith(TEXT)
    changed = {k for k, v in options(aligned).items() if v != options(judge)[k]}
    assert changed == {"instructions"}
    improvement = workbench.alignment_improvement(judge, aligned, traces, progress=False)
    assert improvement["n"] == 30
    with pytest.raises(TooFewPairsError, match="9 of 9 traces"):
        judge.align(traces[:9] * 2, optimizer=optimizer)  # no trace is two labels
    found = optimizer.align(judge, mlflow.search_traces())  # a table, unless one asks for a list
    assert found.instructions == aligned.instructions
    assert improvement["aligned_accuracy"] > improvement["original_accuracy"]
    assert improvement["improvement"] == pytest.approx(
        improvement["aligned_accuracy"] - improvement["original_accuracy"]
    )


def test_the_same_call_pays_nothing_twice(store: str, judge: Any) -> None:
    """A second alignment with the same seed finds the same judge from answers on disk."""
    labelled(40, judge)
    first = workbench.align(judge, progress=False)
    second = workbench.align(judge, progress=False)
    assert second.fingerprints == first.fingerprints
    assert second.reflection_calls == 0
    assert second.calls == 0
    assert first.calls > 20


def test_a_run_records_what_made_the_judge(store: str, judge: Any) -> None:
    """The MLflow run holds split, seed, scores and both instructions."""
    labelled(40, judge)
    alignment = workbench.align(judge, optimizer=Proposing(CURED), seed=3, progress=False)
    assert alignment.run_id
    run = mlflow.get_run(alignment.run_id)
    assert run.data.params["seed"] == "3"
    assert run.data.metrics["after_accuracy"] == alignment.after.accuracy
    assert run.data.tags["workbench.status"] == "improved"
    folder = Path(mlflow.artifacts.download_artifacts(run_id=alignment.run_id))
    split = json.loads((folder / "split.json").read_text())
    assert split["traces"]["test"] == alignment.split.test.trace_ids
    assert (folder / "instructions" / "proposed.txt").read_text() == CURED
    comparison = alignment.comparison
    for name in ("fixed", "broken", "still_wrong"):
        stored = pd.read_csv(folder / "items" / f"{name}.csv")
        assert list(stored["trace_id"]) == list(getattr(comparison, name)["trace_id"])
    fixed = pd.read_csv(folder / "items" / "fixed.csv")
    assert len(fixed)
    assert set(fixed["human_rationale"]) <= {"gives the width", "no figure"}
    assert fixed["after_rationale"].notna().all()


def test_without_its_split_what_a_judge_learned_from_is_not_guessed(store: str, judge: Any) -> None:
    """An artifact store that was full when the run ended, say: the error names the run."""
    ids = labelled(40, judge)
    alignment = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    uri = mlflow.get_run(alignment.run_id).info.artifact_uri
    (Path(local_file_uri_to_path(uri)) / "split.json").unlink()
    workbench.assess(alignment.judge, ids, progress=False)
    with pytest.raises(StoreError, match=f"run {alignment.run_id}, which aligned it, has no split"):
        workbench.align(alignment.judge, optimizer=Proposing(CURED), progress=False)


def test_an_artifact_store_that_takes_no_files_ends_no_alignment(
    store: str, judge: Any, tmp_path: Path
) -> None:
    """The folder that it writes to is a file, say: what was learned is kept, and it is told."""
    (tmp_path / "taken").write_text("")
    where = mlflow.create_experiment("no files", artifact_location=str(tmp_path / "taken"))
    mlflow.set_experiment(experiment_id=where)
    labelled(40, judge)
    with pytest.warns(UserWarning, match="artifact store did not take the run's files"):
        alignment = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    assert alignment.status == "improved"
    assert mlflow.get_run(alignment.run_id).data.tags["workbench.status"] == "improved"


@given(
    seed=st.integers(0, 10_000),
    groups=st.lists(st.integers(0, 14), min_size=40, max_size=40),
    contents=st.lists(st.integers(0, 35), min_size=40, max_size=40),
    before=st.sets(st.integers(0, 39), max_size=20),
)
def test_train_dev_and_test_share_no_trace_group_or_item(
    seed: int, groups: list[int], contents: list[int], before: set[int]
) -> None:
    """Whatever the seed, the groups, the copies among the items and what was learned before."""
    ids = [f"t{i:02}" for i in range(40)]
    pairs = Pairs(
        name="q",
        table=pd.DataFrame(
            {"trace_id": ids, "human": ["yes", "no"] * 20, "judge": "yes", "human_rationale": "",
             "judge_rationale": "", "votes": [{} for _ in ids], "blind": True}
        ),
        excluded=pd.DataFrame(columns=["trace_id", "reason"]),
        scale=Scale.of(["no", "yes"]),
        content={i: (str(c), "a") for i, c in zip(ids, contents, strict=True)},
    )  # fmt: skip
    by_id = {i: Example(i, {"q": c}, "a", {}) for i, c in zip(ids, contents, strict=True)}
    group_of = dict(zip(ids, groups, strict=True))
    learned = frozenset(ids[i] for i in before)
    try:
        split = split_pairs(pairs, by_id, Lineage(learned, learned), group_of, 0.4, seed)
    except ArgumentError:
        assume(False)
    parts = [set(p.trace_ids) for p in (split.train, split.dev, split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40
    assert not learned & parts[2]
    for kind in (group_of, split.test.group_of, {i: contents[int(i[1:])] for i in ids}):
        train, dev, test = ({kind[i] for i in part} for part in parts)
        assert not train & dev
        assert not (train | dev) & test


def test_too_few_pairs_says_why(store: str, judge: Any) -> None:
    """Nine pairs are an error that counts the reasons and says what to do."""
    labelled(9, judge)
    traces = mlflow.search_traces(return_type="list")
    odd = pd.DataFrame({"trace_id": [traces[0].info.trace_id], "label": ["purple"]})
    workbench.log_labels(odd, name=NAME, annotator="ana", value="label", progress=False)
    said = r"8 usable pairs.*at least 10.*1 trace: .*'purple' is not .* Allowed: [^.]*\. Label more"
    with pytest.raises(TooFewPairsError, match=said):
        workbench.align(judge, progress=False)
    with pytest.raises(TooFewPairsError, match=r"at least 10"):
        judge.align(traces, optimizer=workbench.SIMBA(progress=False))


def test_a_renamed_judge_finds_no_labels_and_names_the_near_miss(store: str, judge: Any) -> None:
    """Labels under another name are reported with their count and a remedy."""
    labelled(12, judge)
    renamed = workbench.make_judge(
        "Clarity ", TEXT, model=MODEL, feedback_value_type=Literal["yes", "no"]
    )
    with pytest.raises(NoLabelsError, match="12 labels are stored under 'clarity'"):
        workbench.align(renamed, progress=False)


def test_missing_verdicts_say_to_assess(store: str, judge: Any) -> None:
    """Labels without verdicts of this very version are an error that names the call."""
    labelled(12, judge)
    other = with_instructions(judge, TEXT + " Be strict.")
    with pytest.raises(NoVerdictsError, match="assess"):
        workbench.align(other, progress=False)
    pairs = workbench.pair(judge)
    with pytest.raises(PairingError, match="another judge"):
        workbench.align(other, pairs, progress=False)


def test_built_in_judges_are_refused_with_a_way_out(store: str) -> None:
    """A judge whose instructions cannot be replaced is an error that says what to make."""
    from mlflow.genai.scorers import RelevanceToQuery

    with pytest.raises(WorkbenchError):
        workbench.align(RelevanceToQuery(name=NAME), progress=False)


def test_what_is_no_judge_optimizer_or_seed_is_told_before_anything_is_read(judge: Any) -> None:
    """A seed that is None would be told only by the held-out test, when all is paid for."""
    for wrong, said in (
        ({"judge": NAME}, r"\(str\) is no judge.*load_judge"),
        ({"judge": judge, "optimizer": "SIMBA"}, "optimizer=SIMBA is no AlignmentOptimizer"),
        ({"judge": judge, "optimizer": workbench.SIMBA}, "is no AlignmentOptimizer"),
        ({"judge": judge, "seed": None}, "seed=None must be a whole number"),
        ({"judge": judge, "test_size": "0.4"}, "test_size='0.4' must lie"),
    ):
        with pytest.raises(ArgumentError, match=said):
            workbench.align(**wrong, progress=False)
    for wrong in (NAME, Alignment):
        with pytest.raises(ArgumentError, match="is no judge"):
            workbench.alignment_improvement(judge, wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="is no judge"):
        workbench.align_in_background(NAME)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"seed=1\.5"):
        workbench.SIMBA(seed=1.5)  # type: ignore[arg-type]


@pytest.fixture
def served() -> Iterator[dict[str, Any]]:
    """The embedded model behind a real HTTP server of OpenAI's kind; it can be told to fail."""
    state: dict[str, Any] = {
        "judge": 0,
        "reflect": 0,
        "keys": set(),
        "fail_reflection": False,
        "flaky": 0,
        "refused": 0,
        "repeats_key": False,
    }
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = answer(body["messages"])
            kind = "reflect" if "[[ ## " in text else "judge"
            with lock:
                state[kind] += 1
            state["keys"].add(self.headers.get("Authorization"))
            state["team"] = self.headers.get("X-Team")
            if state["repeats_key"]:
                key = self.headers.get("Authorization")
                text = text.replace('["', f'["It was sent for {key}.", "')
                text = text.replace('"rationale": "', f'"rationale": "Sent for {key}. ')
            if kind == "reflect" and state["refused"] and "ll disagreements" not in str(body):
                state["refused"] -= 1
                text = "I'm sorry, but I can't help with that."
            status, told = 200, {
                "id": "x", "object": "chat.completion", "created": 1, "model": "rubric",
                "choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }  # fmt: skip
            if kind == "reflect" and state["fail_reflection"]:
                key = self.headers.get("Authorization")
                status, told = 404, {"error": {"message": f"no such model as rubric for {key}"}}
            if kind == "reflect" and state["flaky"]:
                state["flaky"] -= 1
                status, told = 500, {"error": {"message": "out of order"}}
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket.listen(256)  # else connections are reset, and requests made again
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state["base_url"] = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-123456")
    return workbench.make_judge(
        NAME,
        TEXT,
        model="openai:/rubric",
        feedback_value_type=Literal["yes", "no"],
        base_url=served["base_url"],
        extra_headers={"X-Team": "judges-7"},
    )


def test_judge_and_reflection_use_the_named_endpoint(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """With a base URL both kinds of call go there, with key and headers, and are counted."""
    labelled(40, remote)
    before = served["judge"]
    alignment = workbench.align(remote, progress=False)
    assert alignment.status == "improved"
    assert served["reflect"] == alignment.reflection_calls > 0
    assert served["judge"] - before == alignment.calls
    assert served["team"] == "judges-7"
    assert alignment.tokens
    assert served["keys"] == {"Bearer sk-loopback-123456"}
    assert options(alignment.judge)["extra_headers"] == {"X-Team": "judges-7"}
    stored = b"".join(p.read_bytes() for p in Path.cwd().rglob("*") if p.is_file())
    assert b"sk-loopback-123456" not in stored
    assert b"judges-7" not in stored


def test_a_key_that_a_model_repeats_is_kept_nowhere(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """Neither rationales nor rules carry it into judge, store, runs, cache or checkpoint."""
    served["repeats_key"] = True
    labelled(40, remote)
    alignment = workbench.align(remote, gate="none", progress=False)
    assert "It was sent for Bearer ***" in alignment.history["dropped"].str.cat()
    stored = b"".join(p.read_bytes() for p in Path.cwd().rglob("*") if p.is_file())
    assert b"sk-loopback-123456" not in stored


def test_a_reflection_model_that_fails_is_an_error(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """When the reflection model does not answer, align raises with what came back."""
    labelled(20, remote)
    served["fail_reflection"] = True
    with pytest.raises(ModelError, match="no such model") as caught:
        workbench.align(remote, progress=False)
    told = "".join(traceback.format_exception(caught.value))
    assert "sk-loopback" not in told
    assert mlflow.search_runs().empty


def test_a_refused_reflection_does_not_end_it(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """The rules of the others are tried, and the result says what was lost."""
    labelled(60, remote)
    served["refused"] = 1
    alignment = workbench.align(remote, max_failure_share=0.5, progress=False)
    assert alignment.status == "improved"
    assert alignment.reflection_failures == 1
    assert any("0 verdicts and 1 reflection failed" in note for note in alignment.notes)
    run = mlflow.get_run(alignment.run_id)
    assert run.data.metrics["reflection_failures"] == 1


@pytest.mark.parametrize("given", [None, 0.9])
def test_the_share_of_failures_is_that_of_the_call(
    store: str, judge: Any, given: float | None
) -> None:
    """A given SIMBA keeps its own unless told otherwise, and gets it back."""
    labelled(40, judge)
    own = Noting(max_failure_share=0.3)
    workbench.align(judge, optimizer=own, max_failure_share=given, progress=False)
    assert own.shares == [0.3 if given is None else given]
    assert own.settings.max_failure_share == 0.3


def test_a_share_that_is_none_is_refused(store: str, judge: Any) -> None:
    with pytest.raises(ArgumentError, match=r"max_failure_share=5 must lie in \[0, 1\]"):
        workbench.align(judge, max_failure_share=5, progress=False)


def test_repeated_reflections_are_counted(store: str, served: dict[str, Any], remote: Any) -> None:
    """Every request to the reflection model counts against the budget, failed ones included."""
    labelled(40, remote)
    served["flaky"] = 2
    before = served["judge"]
    optimizer = workbench.SIMBA(budget=60, progress=False)
    alignment = workbench.align(remote, optimizer=optimizer, progress=False)
    assert optimizer.last is not None
    assert optimizer.last.reflection_calls == served["reflect"] > 2
    asked = served["judge"] - before + served["reflect"]
    assert asked == alignment.calls + alignment.reflection_calls
    assert optimizer.last.judge_calls + served["reflect"] <= 60


@pytest.mark.parametrize("budget", [40, 75])
def test_the_provider_sees_no_more_than_the_budget_of_align(
    store: str, served: dict[str, Any], remote: Any, budget: int
) -> None:
    """A budget given to align is for all of it: first call, learning and held-out test."""
    labelled(60, remote)
    before = served["judge"]
    optimizer = workbench.SIMBA(progress=False)
    alignment = workbench.align(remote, optimizer=optimizer, budget=budget, progress=False)
    assert served["judge"] - before + served["reflect"] <= budget
    assert optimizer.last is not None
    # A call for the first verdict and those of the held-out test are reserved.
    assert optimizer.last.judge_calls + optimizer.last.reflection_calls <= budget - 1 - 24
    assert served["judge"] - before == alignment.calls


def test_what_a_budget_cut_short_is_counted(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """A request was paid for, whatever became of the others of its batch."""
    labelled(40, remote)
    optimizer = workbench.SIMBA(budget=20, progress=False)  # 1 for the first call, 18 for the test
    workbench.align(remote, optimizer=optimizer, progress=False)
    last: Any = optimizer.last
    assert (last.judge_calls, last.reflection_calls) == (0, served["reflect"]) == (0, 1)
    assert last.usage.tokens == 120


def test_what_others_spend_of_a_shared_budget_is_not_the_alignments(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """Each counts its own requests, whoever spends meanwhile."""
    labelled(40, remote)
    before, budget, optimizer = served["judge"], Budget(500), workbench.SIMBA(progress=False)
    optimizer.on_step = lambda step: budget.charge(Usage(7))
    alignment = workbench.align(remote, None, optimizer, budget=budget, progress=False)
    assert served["judge"] - before == alignment.calls < budget.spent


@pytest.mark.parametrize("kind", ["nominal", "ordinal"])
def test_the_announced_calls_are_an_upper_bound(store: str, kind: str) -> None:
    """The preflight never promises fewer calls than are made."""
    values = {"nominal": ["a", "b", "c", "d", "e"], "ordinal": ["poor", "fair", "good"]}[kind]
    judge = workbench.make_judge(
        NAME, TEXT, model=MODEL, feedback_value_type=Literal[tuple(values)]
    )
    rows = table(60)
    rows["ana"] = [values[(i * 7) % len(values)] for i in range(60)]
    workbench.import_traces(
        rows, inputs="question", outputs="answer", labels={"ana": "ana"}, label_name=NAME
    )
    workbench.assess(judge, progress=False)
    optimizer = workbench.SIMBA(max_steps=2, progress=False)
    alignment = workbench.align(judge, optimizer=optimizer, progress=False)
    split = alignment.split
    most, reflections = most_calls(len(split.train), len(split.dev), optimizer.settings)
    assert optimizer.last is not None
    assert optimizer.last.judge_calls <= most
    assert optimizer.last.reflection_calls <= reflections


def test_a_dead_endpoint_is_found_before_anything_is_done(
    store: str, served: dict[str, Any], remote: Any
) -> None:
    """A judge whose server is gone fails at the first call, and nothing is logged."""
    labelled(12, remote)
    gone = workbench.make_judge(
        NAME,
        TEXT,
        model="openai:/rubric",
        feedback_value_type=Literal["yes", "no"],
        base_url="http://127.0.0.1:9/v1",
    )
    pairs = workbench.pair(remote)
    moved = pd.DataFrame({"trace_id": pairs.trace_ids, "judge": list(pairs.table["judge"])})
    own = pairs.with_verdicts(
        {r.trace_id: (r.judge, "") for r in moved.itertuples()}, fingerprint(gone)
    )
    with pytest.raises(ModelError, match=r"127\.0\.0\.1"):
        workbench.align(gone, own, progress=False)
    assert mlflow.search_runs().empty


def test_failures_of_a_kind_are_one_row_of_the_preflight_table(store: str, judge: Any) -> None:
    """Whatever the model said each time."""
    labelled(20, judge)
    pairs = workbench.pair(judge)
    failed = [f"the judge failed: not one of ...: '{number}'" for number in range(50)]
    lost = pd.DataFrame({"trace_id": [f"tr-{n}" for n in range(50)], "reason": failed})
    alignment = workbench.align(judge, replace(pairs, excluded=lost), Noting(), progress=False)
    checks = alignment.preflight
    assert checks.loc[checks["check"].str.contains("failed"), "finding"].tolist() == ["50 traces"]


def test_nothing_unusable_makes_an_improvement(store: str, judge: Any) -> None:
    """alignment_improvement over no common items is nan, not 0."""
    ids = labelled(12, judge)
    dead = workbench.make_judge(
        NAME, TEXT + " {{ expectations }}", model=MODEL, feedback_value_type=bool
    )
    result = workbench.alignment_improvement(judge, dead, ids, progress=False)
    assert result["n"] == 0
    assert result["improvement"] != result["improvement"]


def test_each_look_at_held_out_pairs_is_counted(store: str, judge: Any) -> None:
    """Another judge on the same held-out pairs is a second look, the same judge again is none."""
    labelled(60, judge)
    first = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    again = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    other = workbench.align(judge, optimizer=Proposing(WORSE), progress=False)
    nothing = workbench.align(judge, optimizer=Proposing(TEXT), progress=False)
    mlflow.log_expectation(
        trace_id=first.split.test.trace_ids[0], name="reference", value="known",
        source=mlflow.entities.AssessmentSource("HUMAN", "ana"),
    )  # fmt: skip
    later = workbench.align(judge, optimizer=Proposing(WORSE), progress=False)
    assert [each.looks for each in (first, again, other, nothing, later)] == [1, 1, 2, 0, 2]
    assert any("score 2 different judges" in note for note in other.notes)
    assert not any("looked at before" in note for note in again.notes)
    logged = mlflow.get_run(other.run_id)
    assert logged.data.metrics["looks_at_test"] == 2


def test_a_comparison_of_optimizers_looks_and_tells_of_earlier_looks(
    store: str, judge: Any
) -> None:
    """Each of its judges is a look, and what came before is said."""
    labelled(60, judge)
    first = workbench.compare_optimizers(judge, None, [Proposing(CURED)], progress=False)
    assert not any("looked at before" in note for note in first.notes)
    aligned = workbench.align(judge, optimizer=Proposing(CURED + " "), progress=False)
    assert aligned.looks == 3  # few-shot, the first proposal and this one
    other = workbench.compare_optimizers(judge, None, [Proposing(WORSE)], progress=False)
    assert any("score 4 different judges" in note for note in other.notes)


def test_few_pairs_are_no_proof(store: str, judge: Any) -> None:
    """The reason says so."""
    labelled(24, judge)
    alignment = workbench.align(judge, groups="part", progress=False)
    assert not alignment.comparison.enough
    assert alignment.comparison.power_note in alignment.reason


def test_aligning_an_aligned_judge_follows_newer_labels(store: str, judge: Any) -> None:
    """When people change their mind, what they said before is replaced and not piled upon."""
    early = labelled(60, judge)
    first = workbench.align(judge, groups="part", progress=False).judge
    newer = (
        table(120)
        .iloc[60:]
        .assign(
            ana=lambda t: t["ana"].map({"yes": "no", "no": "yes"}),
            why=lambda t: t["why"].map(
                {"gives the width": "figures put off", "no figure": "in words"}
            ),
        )
    )
    late = workbench.import_traces(
        newer,
        inputs="question",
        outputs="answer",
        tags=["part"],
        labels={"ana": ("ana", "why")},
        label_name=NAME,
        progress=False,
    ).trace_ids
    workbench.assess(first, progress=False)
    second = workbench.align(first, [*early, *late], groups="part", progress=False)
    assert set(second.split.test.trace_ids) <= set(late)
    assert second.status == "improved"
    assert second.before.accuracy < 0.2
    assert second.after.accuracy > 0.8
    rules = [line for line in second.judge.instructions.splitlines() if line.startswith("- ")]
    assert len(rules) == len(set(rules))
    assert second.judge.instructions.count("People who rated items") == 1


class Noting(workbench.SIMBA):
    """Keeps the items that it learns from, and its settings, and proposes nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, progress=False, max_steps=1)
        self.items: list[Any] = []
        self.shares: list[float] = []

    def learn(self, judge: Any, train: Any, dev: Any, **options: Any) -> Any:
        self.items[:] = [*train, *dev]
        self.shares.append(self.settings.max_failure_share)
        return super().learn(judge, train, dev, **options)


def test_a_label_that_was_changed_is_as_new_as_any(store: str, judge: Any) -> None:
    """On what was learned before, people may say something else now: that weighs in full."""
    ids = labelled(60, judge)
    first = workbench.align(judge, optimizer=Proposing(CURED), progress=False)
    learned = first.split.train.trace_ids
    changed = learned[:9]
    human = dict(zip(first.pairs.table["trace_id"], first.pairs.table["human"], strict=True))
    newer = pd.DataFrame(
        {
            "trace_id": learned[:12],
            # Of the last three people say the same once more.
            "ana": [{"yes": "no", "no": "yes"}[human[i]] for i in changed]
            + [human[i] for i in learned[9:12]],
        }
    )
    workbench.log_labels(newer, name=NAME, annotator="ana", value="ana", progress=False)
    workbench.assess(first.judge, ids, progress=False)
    optimizer = Noting()
    second = workbench.align(first.judge, ids, optimizer, progress=False)
    weights = {item.trace_id: item.weight for item in optimizer.items}
    assert not set(learned) & set(second.split.test.trace_ids)
    assert {weights[i] for i in changed} == {1.0}
    assert {weights[i] for i in learned[9:]} == {0.25}


def test_items_that_are_imported_anew_are_known_by_their_content(store: str, judge: Any) -> None:
    """In another experiment they have other ids; what was learned on is not tested on there."""
    labelled(60, judge)
    first = workbench.align(judge, optimizer=Proposing(CURED), gate="none", progress=False)
    by_id = first.examples
    learned = {item_digest(by_id[i]) for p in ("train", "dev") for i in ids_of(first, p)}
    tested = {item_digest(by_id[i]) for i in ids_of(first, "test")}
    mlflow.set_experiment("anew")
    anew = labelled(60, first.judge)
    assert not set(anew) & set(by_id)
    optimizer = Noting()
    second = workbench.align(first.judge, optimizer=optimizer, progress=False)
    assert {item.weight for item in optimizer.items} == {0.25}
    again = {item_digest(second.examples[i]) for i in ids_of(second, "test")}
    assert again <= tested
    assert not again & learned


def ids_of(alignment: workbench.Alignment, part: str) -> list[str]:
    pairs: Pairs = getattr(alignment.split, part)
    return pairs.trace_ids


def test_one_budget_is_given_and_not_two(store: str, judge: Any) -> None:
    """One of align would else silently take the place of SIMBA's own."""
    labelled(12, judge)
    simba = workbench.SIMBA(budget=50, progress=False)
    with pytest.raises(ArgumentError, match="budget=1000 is given, and SIMBA has budget=50"):
        workbench.align(judge, optimizer=simba, budget=1000, progress=False)
    with pytest.raises(ArgumentError, match="Give one of them"):
        workbench.compare_optimizers(judge, None, [simba], budget=1000, progress=False)


def test_learned_rules_of_unknown_origin_are_told_of(store: str, judge: Any) -> None:
    """Edited since, or aligned elsewhere: what it was learned on may be in the test."""
    held = with_instructions(judge, Candidate(TEXT).with_rules(["Be strict."], "x").text)
    labelled(20, held)
    assert "These may be among the held-out" in " ".join(
        workbench.align(held, progress=False).notes
    )
