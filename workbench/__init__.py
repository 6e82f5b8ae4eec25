"""Make an LLM judge agree with the people whose judgement counts.

Every public name is reachable as ``workbench.NAME`` and is loaded when it is first used, so
that ``import workbench`` stays light.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# litellm downloads a price table when it is imported and waits for it; MLflow looks up prices and
# context sizes before the first call, and reports usage. The workbench talks to no one but the
# models that the user names; the lists that both were installed with serve.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_HOME = {
    "ABSTAIN": "scale",
    "AdjudicationPanel": "panel",
    "Agreement": "metrics",
    "Alignment": "alignment",
    "AnnotatorAgreement": "metrics",
    "Assessed": "assessment",
    "Budget": "budget",
    "Assignment": "assignment",
    "BackgroundAlignment": "background",
    "Comparison": "metrics",
    "Dataset": "dataset",
    "Imported": "traces",
    "OptimizerComparison": "leaderboard",
    "LabelPanel": "panel",
    "LabelQuestion": "answers",
    "LabelSession": "labelling",
    "Pairs": "pairing",
    "Prevalence": "metrics",
    "ReviewQueue": "reviews",
    "SIMBA": "simba",
    "Scale": "scale",
    "WorkbenchError": "errors",
    "adjudicate": "adjudication",
    "agreement": "metrics",
    "align": "alignment",
    "align_in_background": "background",
    "alignment_improvement": "alignment",
    "annotator_agreement": "metrics",
    "assess": "assessment",
    "assign": "assignment",
    "compare": "metrics",
    "compare_optimizers": "contest",
    "disagreements": "adjudication",
    "earlier_labels": "rubrics",
    "history": "registry",
    "import_traces": "traces",
    "load_judge": "registry",
    "log_labels": "labels",
    "log_verdicts": "assessment",
    "make_judge": "judge",
    "pair": "pairing",
    "plot_annotators": "plots",
    "plot_balance": "plots",
    "plot_before_after": "plots",
    "plot_comparison": "plots",
    "plot_confusion": "plots",
    "plot_metrics": "plots",
    "prevalence": "metrics",
    "read_dataset": "dataset",
    "recording": "tape",
    "register": "registry",
    "replaying": "tape",
    "review_queue": "reviews",
    "rubric": "rubrics",
    "rubric_history": "rubrics",
    "sampled_accuracy": "sampling",
    "sampled_prevalence": "sampling",
    "set_rubric": "rubrics",
    "use_workspace": "workspace",
    "write_report": "report",
}

__all__ = sorted([*_HOME, "DEFAULT_MODEL", "__version__"])


def __getattr__(name: str) -> Any:
    if name == "DEFAULT_MODEL":
        return importlib.import_module("workbench.judge").default_model()
    if name == "__version__":
        from importlib.metadata import version

        return version("judge-workbench")
    if name in _HOME:
        return getattr(importlib.import_module(f"workbench.{_HOME[name]}"), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
