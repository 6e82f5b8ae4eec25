"""`monitor`: what it says of judges that stay as they are, get worse, or judge otherwise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from loopback import Loopback
from made_pairs import YES_NO, from_confusion, make_pairs

import workbench
from workbench.errors import ArgumentError, NoVerdictsError
from workbench.judging.judge import fingerprint
from workbench.judging.verdict_folder import COLUMNS, VerdictFolder
from workbench.scale import Scale

MONDAY = datetime(2026, 1, 5, tzinfo=timezone.utc)
NUMBERS = Scale("numeric")
JUDGE = workbench.make_judge(
    "q", "Is {{ outputs }} right?", model="openai:/m", feedback_value_type=Literal["yes", "no"]
)


def folder(
    path: Path,
    weeks: list[list[Any]],
    scale: Scale | None = YES_NO,
    mark: str = fingerprint(JUDGE),
    every: int = 1,
) -> workbench.Scored:
    """A folder with these verdicts, of one week after the other; every so many-th is sampled."""
    path.mkdir()
    values = [(week, value) for week, verdicts in enumerate(weeks) for value in verdicts]
    known = dict.fromkeys(COLUMNS) | {"fingerprint": mark, "calls": 1}
    rows = [
        {**known, "row": n, "time": MONDAY + timedelta(weeks=week, hours=n % 90), "verdict": value}
        for n, (week, value) in enumerate(values)
    ]
    made = VerdictFolder(path)
    made.write(0, rows, made.types({}, scale), {"judge": "q", "fingerprint": mark})
    ids = list(range(0, len(rows), every))
    sample = pd.DataFrame({"row": ids, "trace_id": [f"t{n}" for n in ids]})
    made.write_sample(sample.assign(probability=1 / every))
    return workbench.Scored.open(path)


def labels(scored: workbench.Scored, right: list[float], seed: int = 0) -> pd.DataFrame:
    """Labels that agree with the verdicts with the probability of each week."""
    rng, table = random.Random(seed), scored.verdicts.set_index("row")
    rows = []
    for row, trace_id in zip(scored.sample["row"], scored.sample["trace_id"], strict=True):
        week = (table.loc[row, "time"] - MONDAY).days // 7
        verdict = table.loc[row, "verdict"]
        agrees = rng.random() < right[week]
        rows.append((trace_id, verdict if agrees else {"yes": "no", "no": "yes"}[verdict]))
    return pd.DataFrame(rows, columns=["trace_id", "value"])


HALF = ["yes", "no"] * 200


def test_a_judge_that_stays_as_it_is_needs_nothing(tmp_path: Path) -> None:
    """Every week has its figures, and no drift is claimed."""
    scored = folder(tmp_path / "v", [HALF] * 4, every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, [0.9] * 4))
    assert found.action == "none"
    assert list(found.table.index) == [f"2026, week {n:02}" for n in (2, 3, 4, 5)]
    assert list(found.table["verdicts"]) == [400] * 4
    assert list(found.table["labelled"]) == [100] * 4
    assert found.table["accuracy_low"].lt(found.table["accuracy"]).all()
    assert (found.table["shift"] == 0).all()
    assert found.agreement_p > 0.05
    assert found.verdict_p == 1.0
    assert json.loads(json.dumps(found.to_dict()))["action"] == "none"
    assert "1,600 verdicts in 4 weeks, 400 labels. Neither" in repr(found)
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize("right", [[0.9, 0.9, 0.9, 0.6], [0.95, 0.85, 0.75, 0.65]])
def test_agreement_that_falls_asks_for_an_alignment(tmp_path: Path, right: list[float]) -> None:
    """Whether it falls at once or week by week."""
    scored = folder(tmp_path / "v", [HALF] * 4, every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, right))
    assert (found.action, found.agreement_p < 0.01) == ("realign", True)
    assert "Align the judge again" in found.advice


def test_agreement_that_rises_asks_for_nothing(tmp_path: Path) -> None:
    """A change for the better is told and is no reason to align."""
    scored = folder(tmp_path / "v", [HALF] * 3, every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, [0.5, 0.7, 0.95]))
    assert found.agreement_p < 0.01
    assert found.action != "realign"


def test_one_better_week_is_no_change_for_the_worse(tmp_path: Path) -> None:
    """However sure it is."""
    scored = folder(tmp_path / "v", [HALF] * 4, every=2)
    found = workbench.monitor(JUDGE, scored, labels(scored, [0.75, 0.98, 0.75, 0.72]))
    assert (found.agreement_p < 0.01, found.action) == (True, "none")


def test_verdicts_that_shift_ask_for_labels(tmp_path: Path) -> None:
    """They differ from the other weeks' by a share that is told; a tiny shift is left alone."""
    shifted = ["yes"] * 300 + ["no"] * 100
    scored = folder(tmp_path / "v", [HALF, HALF, shifted], every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, [0.9] * 3))
    assert found.action == "label"
    assert "2026, week 04 differ from those of the other weeks by 25%" in found.advice
    assert found.table["shift"].iloc[-1] == pytest.approx(0.25)
    tiny = folder(tmp_path / "w", [HALF * 50, ["yes"] * 10_500 + ["no"] * 9_500], every=400)
    found = workbench.monitor(JUDGE, tiny, labels(tiny, [1.0, 1.0]))
    assert found.verdict_p < 1e-4
    assert found.action == "none"


def test_too_few_labels_of_the_latest_week_ask_for_more(tmp_path: Path) -> None:
    """With how many there are; without any the verdicts are looked at all the same."""
    scored = folder(tmp_path / "v", [HALF] * 3, every=4)
    table = labels(scored, [0.9] * 3)
    found = workbench.monitor(JUDGE, scored, table.head(220))
    assert (found.action, "has 20 labels" in found.advice) == ("label", True)


def test_weeks_with_few_labels_keep_their_own(tmp_path: Path) -> None:
    """However few, they are counted and have their agreement: no week is pooled with another."""
    scored = folder(tmp_path / "v", [HALF] * 4, every=44)
    found = workbench.monitor(JUDGE, scored, labels(scored, [1.0] * 4))
    assert list(found.table["labelled"]) == [10, 9, 9, 9]
    assert list(found.table["accuracy"]) == [1.0] * 4
    assert "Label 21 more of 2026, week 05, which has 9 labels" in found.advice


def test_the_agreement_is_that_of_the_version_that_scored(
    store: str, tmp_path: Path, loopback: Callable[..., Loopback]
) -> None:
    """Pairs of another one are refused, also where the name stands for it."""
    one, two = (
        workbench.make_judge(
            "q", "Is {{ outputs }} right?", model="openai:/m", feedback_value_type=bool,
            base_url=loopback(says=json.dumps({"result": answer, "rationale": ""})).url,
        )
        for answer in (True, False)
    )  # fmt: skip
    table = pd.DataFrame({"q": [f"q{n}" for n in range(30)], "a": "x"})
    columns: dict[str, Any] = {"inputs": "q", "outputs": "a", "progress": False}
    scored = workbench.score(one, table, **columns, to=tmp_path / "v", sample=30)
    workbench.assess(two, scored.trace_ids, progress=False)
    made = pd.DataFrame({"trace_id": scored.trace_ids, "value": True})
    workbench.log_labels(made, name="q", annotator="ana", value="value", progress=False)
    found = workbench.monitor(one, scored).agreement
    assert found is not None
    assert found.accuracy == 1.0
    for judge, pairs in ((one, workbench.pair(two)), ("q", None)):
        with pytest.raises(ArgumentError, match="labels: the pairs are of the version"):
            workbench.monitor(judge, scored, pairs)


def test_labels_outside_the_sample_are_told(tmp_path: Path) -> None:
    """A note counts them, beside what the pairs have to say themselves."""
    scored = folder(tmp_path / "v", [HALF], every=4)
    more = pd.DataFrame({"trace_id": ["t1", "t2", "t3"], "value": ["yes", "yes", None]})
    found = workbench.monitor(JUDGE, scored, pd.concat([labels(scored, [0.9]), more]))
    assert found.notes == ("2 traces of labels have no verdict in the sample and are left out.",)
    pairs = replace(from_confusion([[20, 5], [5, 20]]), notes=("Known.",))
    pairs.table["trace_id"] = [f"t{2 * n}" for n in range(50)]
    found = workbench.monitor(JUDGE, scored, pairs)
    assert [note[:8] for note in found.notes] == ["Known.", "25 trace"]


def test_percentages_are_numbers(tmp_path: Path) -> None:
    """A judge that answers in text, with more than 20 different ones, is one of numbers."""
    weeks = [[f"{at + n % 40}%" for n in range(200)] for at in (20, 60)]
    scored = folder(tmp_path / "v", weeks, None, "m", every=4)
    table = scored.verdicts.set_index("row").loc[scored.sample["row"]]
    made = pd.DataFrame({"trace_id": scored.trace_ids, "value": list(table["verdict"])})
    found = workbench.monitor("q", scored, made)
    assert list(found.table["shift"]) == pytest.approx([1.0, 1.0])
    assert list(found.table["mean_distance"]) == [0.0, 0.0]


def test_what_is_undefined_is_nan_with_its_reason(tmp_path: Path) -> None:
    """One week, no labels, one verdict throughout."""
    one = folder(tmp_path / "one", [HALF], every=4)
    found = workbench.monitor(JUDGE, one, labels(one, [0.9]))
    assert math.isnan(found.agreement_p)
    assert math.isnan(found.verdict_p)
    assert found.table["note"].iloc[0] == "no other week to compare with"
    assert (found.action, "another week" in found.advice) == ("none", True)
    same = folder(tmp_path / "same", [["yes"] * 50] * 2)
    (tmp_path / "same" / "_sample.json").unlink()
    found = workbench.monitor(JUDGE, same)
    assert found.agreement is None
    assert "No row was imported" in found.notes[0]
    assert list(found.table["note"]) == ["too few verdicts of two values"] * 2
    assert found.action == "label"


def test_numbers_are_compared_by_their_distribution(tmp_path: Path) -> None:
    """By tenths: a shift of a standard deviation is one of nearly 38 % of the verdicts."""
    rng = np.random.default_rng(0)
    weeks = [list(rng.normal(at, 1.0, 4000)) for at in (5, 5, 6)]
    scored = folder(tmp_path / "v", weeks, NUMBERS, "m", every=40)
    people = scored.verdicts.iloc[::40]["verdict"] + rng.normal(0, 0.2, 300)
    table = pd.DataFrame({"trace_id": scored.trace_ids, "value": list(people)})
    found = workbench.monitor("q", scored, table)
    assert found.table["shift"].iloc[-1] == pytest.approx(0.383, abs=0.03)
    assert found.table["shift_p"].iloc[-1] < 1e-6
    (line, *_) = workbench.plot_monitor(found).get_lines()
    assert set(line.get_ydata()) <= set(found.table["mean_distance"])
    plt.close("all")


def test_rare_verdicts_do_not_keep_the_rest_from_being_tested(tmp_path: Path) -> None:
    """Three of a thousand are counted together, and the shift of the others is seen."""
    weeks = [[*HALF, "maybe"], [*HALF, "maybe"], [*["yes"] * 300, *["no"] * 100, "maybe"]]
    scale = Scale.of(["no", "maybe", "yes"])
    found = workbench.monitor("q", folder(tmp_path / "v", weeks, scale, "m"), _three(tmp_path))
    assert found.verdict_p < 1e-6


def _three(path: Path) -> pd.DataFrame:
    table = workbench.Scored.open(path / "v")
    values = table.verdicts["verdict"]
    return pd.DataFrame({"trace_id": table.trace_ids, "value": list(values)})


@pytest.mark.slow
def test_alarms_are_false_as_seldom_as_the_confidence_says(tmp_path: Path) -> None:
    """Of 20 judges that stay as they are, about 5 % are said to change, and not 10."""
    scored = folder(tmp_path / "v", [HALF] * 4, every=8)
    alarms = [
        workbench.monitor(JUDGE, scored, labels(scored, [0.8] * 4, seed)).agreement_p < 0.05
        for seed in range(20)
    ]
    assert sum(alarms) <= 5


def test_folders_of_several_months_are_one_and_of_several_judges_none(tmp_path: Path) -> None:
    """Paths and results may be mixed; verdicts of another version are refused."""
    one = folder(tmp_path / "one", [HALF])
    with pytest.raises(ArgumentError, match="each version of a judge by itself"):
        workbench.monitor(JUDGE, [one, folder(tmp_path / "other", [HALF], mark="other")])
    with pytest.raises(ArgumentError, match="holds no verdicts"):
        workbench.monitor(JUDGE, tmp_path)
    unknown = workbench.monitor(JUDGE, one, pd.DataFrame({"trace_id": ["x"], "value": ["yes"]}))
    assert "1 trace of labels have no verdict" in unknown.notes[0]
    assert "Label 30 more" in unknown.advice
    with pytest.raises(ArgumentError, match="several labels of one trace"):
        workbench.monitor(JUDGE, one, pd.DataFrame({"trace_id": ["t1"] * 2, "value": ["yes"] * 2}))
    with pytest.raises(ArgumentError, match=r"verdicts are of \['q'\] .* and 'zzz' with any one"):
        workbench.monitor("zzz", one)
    with pytest.raises(NoVerdictsError, match="no usable verdict"):
        workbench.monitor(JUDGE, folder(tmp_path / "failed", [[None] * 3]))
    twice = workbench.monitor(JUDGE, [one, tmp_path / "one"], labels(one, [0.9]))
    assert list(twice.table["verdicts"]) == [400]
    two = folder(tmp_path / "two", [[], [], HALF])
    found = workbench.monitor(JUDGE, [one, tmp_path / "two"], labels(one, [0.9]))
    assert list(found.table["verdicts"]) == [400, 400]
    assert two.rows == 400


def test_the_picture_shows_each_week(tmp_path: Path) -> None:
    """A point, an interval and a bar a week, with the number of labels below."""
    shifted = ["yes"] * 300 + ["no"] * 100
    scored = folder(tmp_path / "v", [HALF, HALF, shifted], every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, [0.9, 0.9, 0.5]))
    ax = workbench.plot_monitor(found)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(list(found.table["shift"]))
    assert ax.get_xticklabels()[0].get_text().replace("\n", " ") == "2026, week 02 (100)"
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [3, 0]  # sure, and maybe luck
    sure = workbench.monitor(JUDGE, scored, labels(scored, [0.9, 0.9, 0.5]), confidence=1 - 1e-12)
    assert [len(line.get_xdata()) for line in workbench.plot_monitor(sure).lines[:2]] == [0, 3]
    ax.figure.savefig(tmp_path / "monitor.png")
    plt.close("all")


def test_copies_of_an_answer_are_no_trend(tmp_path: Path) -> None:
    """Four answers, of each week one, tell no more if each was given 40 times."""
    scored = folder(tmp_path / "v", [["yes"] * 40] * 4)
    ids = [f"t{n}" for n in range(160)]
    made = make_pairs(["yes"] * 80 + ["no"] * 80, ["yes"] * 160)
    loose = replace(made, table=made.table.assign(trace_id=ids))
    tied = replace(loose, content={i: (f"week {n // 40}", "") for n, i in enumerate(ids)})
    many, few = (workbench.monitor(JUDGE, scored, pairs) for pairs in (loose, tied))
    assert few.trend == pytest.approx(many.trend)
    assert many.agreement_p < 0.01 < 0.05 < few.agreement_p


def test_the_trend_is_one_of_calendar_weeks(tmp_path: Path) -> None:
    """Also where a week in between has no verdicts."""
    scored = folder(tmp_path / "v", [HALF, [], [], [], HALF], every=4)
    found = workbench.monitor(JUDGE, scored, labels(scored, [1.0, 0, 0, 0, 0.6]))
    change = found.table["accuracy"].iloc[-1] - found.table["accuracy"].iloc[0]
    assert found.trend == pytest.approx(change / 4)
