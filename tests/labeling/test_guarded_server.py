"""What is read and written on a tracking server that asks for user and password."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Literal

import mlflow
import pandas as pd
import pytest
from labeling_helpers import View
from running import SECRET

import workbench
from workbench.errors import StoreError

TABLE = pd.DataFrame(
    {
        "q": [f"question {n}" for n in range(3)],
        "a": ["a long and helpful answer, see page 3" if n % 2 else "no" for n in range(3)],
        "ana": ["good" if n % 2 else "poor" for n in range(3)],
    }
)


def test_a_server_with_users_is_read_and_written_by_password_alone(
    guarded_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Few items, since such a server takes a fifth of a second to check each request."""
    workbench.use_workspace(tmp_path / "output", experiment="life", tracking_uri=guarded_server)
    judge = workbench.make_judge(
        "quality", "Rate {{ outputs }} given {{ inputs }}.",
        feedback_value_type=Literal["good", "poor"], model="offline:/rubric",
    )  # fmt: skip
    imported = workbench.import_traces(
        TABLE, inputs="q", outputs="a", labels={"ana": "ana"}, label_name="quality"
    )
    assert workbench.assess(judge, imported).calls == 3
    labels = TABLE.assign(trace_id=imported.trace_ids)
    assert workbench.log_labels(labels, name="quality", annotator="ben", value="ana").written == 3
    panel = workbench.LabelPanel(judge, imported, annotator="cem")
    view = View(panel.session)
    view.act(view.save(0, "good", "as it is"))
    assert panel.labels["value"].tolist() == ["good"]
    pairs = workbench.pair(judge, imported)
    assert len(pairs) == 3
    assert workbench.annotator_agreement(pairs).shared_items == 3
    assert workbench.register(judge).version == 1
    assert workbench.load_judge("quality").instructions == judge.instructions
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-password-4711")
    said = ""
    for step in (
        lambda: workbench.import_traces(TABLE, inputs="q", outputs="a"),
        lambda: workbench.assess(judge, imported),
        lambda: workbench.log_labels(labels, name="quality", annotator="ben", value="ana"),
        lambda: workbench.pair("quality"),
        lambda: workbench.register(judge),
        lambda: workbench.load_judge("quality"),
        lambda: workbench.use_workspace(tmp_path, experiment="life", tracking_uri=guarded_server),
    ):
        with pytest.raises(StoreError, match=r"\(401\)\. Set MLFLOW_TRACKING_USERNAME") as caught:
            step()
        said += "".join(traceback.format_exception(caught.value))
    mlflow.end_run()
    said += "".join(capfd.readouterr())
    assert SECRET not in said
    assert "wrong-password-4711" not in said
