"""Make an LLM judge agree with the people whose judgement counts.

Every public name is reachable as ``workbench.NAME`` and is loaded when it is first used, so
that ``import workbench`` stays light.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# litellm and dspy fetch price lists, MLflow a model catalog, and MLflow reports its usage: each
# waits for the network, before the first call or at import. The lists that they are installed
# with serve. WORKBENCH_ALLOW_LOOKUPS=1 leaves the environment alone; a user's own values stay.
if not os.environ.get("WORKBENCH_ALLOW_LOOKUPS"):
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_NAMES = {
    "alignment.align": ["align", "alignment_improvement"],
    "alignment.benchmark": ["compare_optimizers"],
    "alignment.certificate": ["certify"],
    "alignment.registry": ["diff", "history", "load_judge", "register", "roll_back"],
    "alignment.result": ["Alignment", "Certificate", "OptimizerComparison"],
    "errors": ["WorkbenchError"],
    "experiments.records": ["record"],
    "experiments.sweep": ["sweep"],
    "experiments.tracking": ["runs"],
    "experiments.workspace": ["use_workspace"],
    "judging.assessment": ["Assessed", "assess", "log_verdicts"],
    "judging.judge": ["make_judge"],
    "judging.scoring": ["score"],
    "judging.verdict_folder": ["Scored"],
    "labeling.assignment": ["Assignment", "assign"],
    "labeling.questions": ["LabelQuestion"],
    "labeling.review_queue": ["ReviewQueue", "review_queue"],
    "labeling.sessions": ["LabelSession"],
    "metrics.agreement": ["Agreement", "agreement"],
    "metrics.alternative": ["AlternativeAnnotatorTest", "alternative_annotator_test"],
    "metrics.annotators": ["AnnotatorAgreement", "annotator_agreement"],
    "metrics.comparison": ["Comparison", "compare"],
    "metrics.monitoring": ["Monitored", "monitor"],
    "metrics.prevalence": ["Prevalence", "prevalence", "sampled_accuracy", "sampled_prevalence"],
    "metrics.repetitions": ["over_seeds", "varying"],
    "metrics.sample_size": ["LabelsNeeded", "labels_needed"],
    "metrics.self_agreement": ["SelfAgreement", "self_agreement"],
    "metrics.slices": ["Slices"],
    "models.budget": ["Budget"],
    "models.recording": ["recording", "replaying"],
    "pairing.adjudication": ["adjudicate", "disagreements"],
    "pairing.joining": ["pair"],
    "pairing.pairs": ["Pairs"],
    "reporting.matrices": [
        "plot_annotators",
        "plot_before_after",
        "plot_confusion",
        "plot_difference",
    ],
    "reporting.plots": [
        "plot_balance",
        "plot_comparison",
        "plot_metrics",
        "plot_monitor",
        "plot_ratings",
        "plot_slices",
    ],
    "reporting.report": ["write_report"],
    "reporting.sweep_plots": ["plot_frontier", "plot_learning_curve", "plot_sweep"],
    "scale": ["ABSTAIN", "Scale"],
    "simba.optimizer": ["SIMBA"],
    "store.assessments": ["log_labels"],
    "store.checks": ["check_data"],
    "store.dataset": ["Dataset", "read_dataset"],
    "store.exports": ["read_labels"],
    "store.importing": ["Imported", "import_traces"],
    "store.schemas": ["earlier_labels", "rubric", "rubric_history", "set_rubric"],
    "widgets.explorer": ["Explorer"],
    "widgets.panels": ["AdjudicationPanel", "LabelPanel"],
    "widgets.progress": ["BackgroundAlignment", "align_in_background"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, "DEFAULT_MODEL", "__version__"])


def __getattr__(name: str) -> Any:
    if name == "DEFAULT_MODEL":
        return importlib.import_module("workbench.judging.judge").default_model()
    if name == "__version__":
        from importlib.metadata import version

        return version("judge-workbench")
    if name in _HOME:
        return getattr(importlib.import_module(f"workbench.{_HOME[name]}"), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
