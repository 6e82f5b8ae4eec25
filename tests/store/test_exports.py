"""Exports of labelling tools become tables that `import_traces` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench
from workbench.errors import ArgumentError, TableError
from workbench.store.exports import ReadLabels

LABEL_STUDIO = [
    {
        "id": 7,
        "data": {"question": "Two?", "answer": "2"},
        "annotations": [
            {
                "completed_by": {"id": 1, "email": "ana@example.org"},
                "was_cancelled": False,
                "result": [
                    {"from_name": "quality", "type": "choices", "value": {"choices": ["good"]}},
                    {"from_name": "why", "type": "textarea", "value": {"text": ["It is."]}},
                ],
            },
            {"completed_by": 2, "was_cancelled": True, "result": []},
            {"completed_by": 3, "was_cancelled": False, "result": []},
        ],
        "predictions": [],
    },
    {
        "id": 8,
        "data": {"question": "Three?", "answer": "4"},
        "annotations": [
            {
                "completed_by": 2,
                "result": [
                    {"from_name": "quality", "type": "choices", "value": {"choices": ["a", "b"]}},
                ],
            },
            {
                "completed_by": 2,
                "result": [
                    {"from_name": "quality", "type": "choices", "value": {"choices": ["poor"]}}
                ],
            },
        ],
    },
]
ARGILLA = [
    {
        "id": "r1",
        "status": "completed",
        "fields": {"question": "Two?", "answer": "2"},
        "responses": {
            "quality": [
                {"value": "good", "user_id": "ana"},
                {"value": "poor", "user_id": "ben", "status": "submitted"},
                {"value": "poor", "user_id": "cem", "status": "discarded"},
            ],
            "why": [{"value": "It is.", "user_id": "ana"}],
        },
    }
]
ARGILLA_ROWS = [
    {
        "id": "r1",
        "status": "completed",
        "question": "Two?",
        "answer": "2",
        "quality.suggestion": "poor",
        "quality.responses": ["good", "poor"],
        "quality.responses.users": ["ana", "ben"],
        "quality.responses.status": ["submitted", "submitted"],
    }
]
LANGSMITH = [
    {
        "id": "run-1",
        "inputs": {"question": "Two?"},
        "outputs": {"answer": "2"},
        "feedback": [
            {"key": "quality", "value": "good", "score": None, "comment": "It is.",
             "feedback_source": {"type": "app", "user_name": "ana"}},
            {"key": "quality", "score": 0.0, "value": "poor",
             "feedback_source": {"type": "app", "user_name": "ben"}},
            {"key": "quality", "score": 1, "feedback_source": {"type": "model"}},
        ],
    }
]  # fmt: skip
LANGFUSE = [
    {
        "id": "t1",
        "input": {"question": "Two?"},
        "output": {"answer": "2"},
        "scores": [
            {"name": "quality", "value": 1, "stringValue": "good", "dataType": "CATEGORICAL",
             "source": "ANNOTATION", "authorUserId": "ana", "comment": "It is."},
            {"name": "quality", "value": 0, "stringValue": "poor", "dataType": "CATEGORICAL",
             "source": "ANNOTATION", "authorUserId": "ben"},
            {"name": "quality", "value": 0, "stringValue": "poor", "source": "EVAL"},
        ],
    }
]  # fmt: skip
LANGFUSE_APART = [
    {"id": "t1", "input": {"question": "Two?"}, "output": {"answer": "2"}},
    *({"id": who, "trace_id": "t1", "name": "quality", "value": 0, "string_value": value,
       "author_user_id": who} for who, value in (("ana", "good"), ("ben", "poor"))),
]  # fmt: skip
PRODIGY = [
    {"question": "Two?", "answer_text": "2", "_input_hash": 1, "_task_hash": 1, "accept": ["good"],
     "options": [{"id": "good"}, {"id": "poor"}], "answer": "accept", "_annotator_id": "ana"},
    {"question": "Two?", "answer_text": "2", "_input_hash": 1, "_task_hash": 1, "accept": ["poor"],
     "options": [{"id": "good"}, {"id": "poor"}], "answer": "accept", "_annotator_id": "ben"},
    {"question": "Two?", "answer_text": "2", "_input_hash": 1, "_task_hash": 1, "accept": [],
     "options": [], "answer": "ignore", "_annotator_id": "cem"},
]  # fmt: skip


def read(folder: Path, records: list[Any], *, lines: bool = False, **options: Any) -> ReadLabels:
    path = folder / "export.json"
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return workbench.read_labels(path, **options)


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("tool", "records", "options", "problems"),
    [
        ("Argilla", ARGILLA, {"question": "quality", "rationale": "why"}, 1),
        ("Argilla", ARGILLA_ROWS, {}, 0),
        ("LangSmith", LANGSMITH, {}, 1),
        ("Langfuse", LANGFUSE, {}, 1),
        ("Langfuse", LANGFUSE_APART, {}, 0),
        ("Prodigy", PRODIGY, {"outputs": "answer_text"}, 1),
    ],
)
def test_each_tool_is_told_and_gives_the_same_table(
    tmp_path: Path,
    tool: str,
    records: list[Any],
    options: dict[str, Any],
    problems: int,
    lines: bool,
) -> None:
    found = read(tmp_path, records, lines=lines, **options)
    assert found.format == tool
    assert (found.columns["inputs"], len(found)) == (["question"], 1)
    assert found.table[found.columns["outputs"]].tolist() == ["2"]
    row = found.table.iloc[0]
    ratings = {who: row[column] for who, (column, _) in found.columns["labels"].items()}
    assert ratings == {"ana": "good", "ben": "poor"}
    assert len(found.problems) == problems
    why = row[found.columns["labels"]["ana"][1]]
    assert why in (None, "It is.") or why != why
    assert "1 items" not in repr(found)


def test_label_studio_with_reasons_and_what_could_not_be_read(tmp_path: Path) -> None:
    found = read(tmp_path, LABEL_STUDIO)
    assert (found.format, found.question) == ("Label Studio", "quality")
    columns = found.columns["labels"]
    first, second = found.table.to_dict("records")
    assert first[columns["ana@example.org"][0]] == "good"
    assert first[columns["ana@example.org"][1]] == "It is."
    assert second[columns["2"][0]] == "poor"
    assert found.problems["reason"].tolist() == [
        "skipped by the annotator",
        "no value",
        'several values at once: ["a", "b"]',
    ]


def test_what_was_read_is_imported(tmp_path: Path, store: str) -> None:
    found = read(tmp_path, LANGFUSE)
    imported = workbench.import_traces(found.table, **found.columns, label_name="quality")
    assert len(imported.trace_ids) == 1
    votes = workbench.annotator_agreement(
        found.table[[column for column, _ in found.columns["labels"].values()]]
    )
    assert votes.shared_items == 1


def test_answers_to_a_question_that_holds_no_rating_are_listed(tmp_path: Path) -> None:
    tags = {"tags": [{"value": ["x", "y"], "user_id": "ana"}]}
    quality = {"quality": ARGILLA[0]["responses"]["quality"]}
    export = [{**ARGILLA[0], "responses": quality | tags}]
    assert (
        'several values at once: ["x", "y"]' in read(tmp_path, export).problems["reason"].tolist()
    )


def test_several_questions_must_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'quality', 'why'\. Name the one that is the rating"):
        read(tmp_path, ARGILLA)


def test_the_later_of_two_answers_counts_and_the_earlier_is_listed(tmp_path: Path) -> None:
    """With its own comment, if it has one, and not with that of the earlier."""
    scores = [
        {"name": "quality", "value": v, "source": "ANNOTATION", "authorUserId": "ana", "comment": c}
        for v, c in ((2, "wrong date"), (4, None))
    ]
    found = read(tmp_path, [{"id": "t", "input": "a", "output": "b", "scores": scores}])
    assert found.table["label: ana"].tolist() == [4]
    assert found.table["rationale: ana"].tolist() == [None]
    assert found.problems["reason"].tolist() == ["2 was replaced by the later answer 4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a", "rating": 1}]', "looks like no export of Prodigy, Label Studio, Argilla"),
        ('[{"id": "s", "traceId": "t", "name": "q", "value": 1}]', "put traces and scores into"),
        ('[{"data": {}, "annotations": [3]}]', "not in the form that is documented"),
        ("nothing", "line 1 is"),
        ("[]", "it is empty"),
        ("[" * 100_000, "line 1 is"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=message):
        workbench.read_labels(path)


def test_a_table_is_no_export(tmp_path: Path) -> None:
    path = tmp_path / "project.csv"
    path.write_text("text,annotator,quality\na,ana,good\n", encoding="utf-8")
    with pytest.raises(TableError, match="it may be CSV, which"):
        workbench.read_labels(path)


def test_scores_are_found_wherever_they_stand_in_the_file(tmp_path: Path) -> None:
    """Traces with ids of scores come first, and an observation does not take a trace's place."""
    scores = [
        {"id": who, "traceId": "t7", "name": "quality", "value": 1, "authorUserId": who}
        for who in ("Ana", "ben")
    ]
    traces = [
        {"id": f"t{n}", "input": {"question": n}, "output": "a", "scores": ["Ana", "ben"]}
        for n in range(60)
    ]
    step = {"id": "o", "traceId": "t7", "type": "SPAN", "input": {"step": 1}, "output": "b"}
    for records in ([*traces, step, *scores], [step, *traces, *scores]):
        found = read(tmp_path, records, lines=True)
        assert (len(found), found.columns["inputs"]) == (60, ["question"])
        assert found.table["label: Ana"].dropna().tolist() == [1]
    bare = [{k: v for k, v in trace.items() if k != "scores"} for trace in traces]
    assert len(read(tmp_path, [*bare, *scores], lines=True)) == 60


def test_writings_of_a_name_are_one_person(tmp_path: Path, store: str) -> None:
    """As everywhere else, so that what was read can be imported."""
    records = [
        {"id": who, "input": f"q {who}", "output": "a",
         "scores": [{"name": "quality", "value": 1, "authorUserId": who}]}
        for who in ("Ana", "ana", "ANA")
    ]  # fmt: skip
    found = read(tmp_path, records)
    assert list(found.columns["labels"]) == ["Ana"]
    assert workbench.import_traces(found.table, **found.columns, label_name="quality").labels == 3


def test_an_answer_of_the_application_may_be_a_word_of_prodigys(tmp_path: Path) -> None:
    assert read(tmp_path, [{**ARGILLA_ROWS[0], "answer": "accept"}]).format == "Argilla"


def test_what_people_type_in_prodigy_is_their_reason_and_no_input(tmp_path: Path) -> None:
    """Answers to one question are two items, though Prodigy gives both the same hash."""
    task = {"text": "Q", "_input_hash": 1, "_task_hash": 1, "answer": "accept"}
    given = [("A1", "good", "ana", "short"), ("A2", "bad", "ben", "long"), ("A1", "bad", "ben", "")]
    records = [
        {**task, "response": response, "accept": [label], "_annotator_id": who, "user_input": why}
        for response, label, who, why in given
    ]
    found = read(tmp_path, records)
    assert (found.columns["inputs"], found.columns["outputs"]) == (["text"], "response")
    table = (
        found.table.astype(object).where(found.table.notna(), None).drop(columns=["item", "text"])
    )
    assert table.values.tolist() == [
        ["A1", "good", "short", "bad", None],
        ["A2", None, None, "bad", "long"],
    ]
    assert found.problems.empty
    own = [{**record, "why": record["user_input"], "_view_id": "choice"} for record in records]
    assert "user_input" in read(tmp_path, own).columns["inputs"]
    found = read(tmp_path, own, rationale="why")
    assert found.columns["inputs"] == ["text", "user_input"]
    assert found.table["rationale: ana"].dropna().tolist() == ["short"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_score_of_an_observation_is_a_label_of_that(tmp_path: Path, nested: bool) -> None:
    """And neither of its trace nor of the other observations there."""
    trace = {"id": "t1", "input": "ask", "output": "all"}
    steps = [
        {"id": f"o{n}", "traceId": "t1", "type": "SPAN", "input": f"step {n}", "output": n}
        for n in range(4)
    ]
    scores = [
        {"id": f"s{n}", "traceId": "t1", "observationId": f"o{n}", "name": "quality", "value": n,
         "source": source, "authorUserId": "ana"}
        for n, source in ((1, "ANNOTATION"), (2, "ANNOTATION"), (3, "EVAL"), (9, "ANNOTATION"))
    ]  # fmt: skip
    records = [{**trace, "observations": steps}] if nested else [*steps, trace]
    found = read(tmp_path, [*records, *scores])
    rows = found.table[["input", "label: ana"]].fillna("none").values.tolist()
    assert rows == [["ask", "none"], ["step 1", 1], ["step 2", 2]]
    assert found.problems["reason"].str.startswith(("given by EVAL", "the observation that")).all()
    assert len(found.problems) == 2


@pytest.mark.parametrize("field", [{"feedback": "Thanks!"}, {"feedback": [], "scores": []}])
def test_fields_that_other_tools_have_are_fields_in_prodigy(
    tmp_path: Path, field: dict[str, Any]
) -> None:
    found = read(tmp_path, [{**task, **field} for task in PRODIGY], outputs="answer_text")
    assert (found.format, found.columns["inputs"]) == ("Prodigy", ["question", *field])
    bare = [{k: v for k, v in task.items() if k != "_task_hash"} for task in PRODIGY]
    found = read(
        tmp_path, [{**task, "feedback": "Thanks!"} for task in bare], outputs="answer_text"
    )
    assert found.format == "Prodigy"
