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

_HOME = {
    "ABSTAIN": "scale",
    "AdjudicationPanel": "widgets.panels",
    "Agreement": "metrics.agreement",
    "AlternativeAnnotatorTest": "metrics.alternative",
    "Alignment": "alignment.result",
    "AnnotatorAgreement": "metrics.annotators",
    "Assessed": "judging.assessment",
    "Budget": "models.budget",
    "Assignment": "labeling.assignment",
    "BackgroundAlignment": "alignment.background",
    "Comparison": "metrics.comparison",
    "Dataset": "store.dataset",
    "Certificate": "alignment.certificate",
    "Explorer": "widgets.explorer",
    "Imported": "store.importing",
    "Monitored": "metrics.monitoring",
    "OptimizerComparison": "alignment.result",
    "LabelPanel": "widgets.panels",
    "LabelQuestion": "labeling.questions",
    "LabelsNeeded": "metrics.sample_size",
    "LabelSession": "labeling.sessions",
    "Pairs": "pairing.pairs",
    "Prevalence": "metrics.prevalence",
    "ReviewQueue": "labeling.review_queue",
    "SIMBA": "simba.optimizer",
    "Scored": "judging.verdict_folder",
    "SelfAgreement": "metrics.self_agreement",
    "Scale": "scale",
    "Slices": "metrics.slices",
    "WorkbenchError": "errors",
    "adjudicate": "pairing.adjudication",
    "agreement": "metrics.agreement",
    "align": "alignment.align",
    "align_in_background": "alignment.background",
    "alignment_improvement": "alignment.align",
    "alternative_annotator_test": "metrics.alternative",
    "annotator_agreement": "metrics.annotators",
    "assess": "judging.assessment",
    "assign": "labeling.assignment",
    "diff": "alignment.registry",
    "roll_back": "alignment.registry",
    "certify": "alignment.certificate",
    "check_data": "store.checks",
    "compare": "metrics.comparison",
    "compare_optimizers": "alignment.benchmark",
    "disagreements": "pairing.adjudication",
    "earlier_labels": "store.rubrics",
    "history": "alignment.registry",
    "import_traces": "store.importing",
    "labels_needed": "metrics.sample_size",
    "load_judge": "alignment.registry",
    "log_labels": "store.assessments",
    "log_verdicts": "judging.assessment",
    "make_judge": "judging.judge",
    "monitor": "metrics.monitoring",
    "over_seeds": "metrics.repetitions",
    "pair": "pairing.joining",
    "plot_annotators": "reporting.matrices",
    "plot_balance": "reporting.plots",
    "plot_before_after": "reporting.matrices",
    "plot_comparison": "reporting.plots",
    "plot_confusion": "reporting.matrices",
    "plot_difference": "reporting.matrices",
    "plot_frontier": "reporting.sweep_plots",
    "plot_learning_curve": "reporting.sweep_plots",
    "plot_metrics": "reporting.plots",
    "plot_monitor": "reporting.plots",
    "plot_ratings": "reporting.plots",
    "plot_slices": "reporting.plots",
    "plot_sweep": "reporting.sweep_plots",
    "prevalence": "metrics.prevalence",
    "read_dataset": "store.dataset",
    "read_labels": "store.exports",
    "record": "experiments.records",
    "recording": "models.recording",
    "register": "alignment.registry",
    "replaying": "models.recording",
    "review_queue": "labeling.review_queue",
    "rubric": "store.rubrics",
    "rubric_history": "store.rubrics",
    "runs": "experiments.tracking",
    "sampled_accuracy": "metrics.prevalence",
    "sampled_prevalence": "metrics.prevalence",
    "score": "judging.scoring",
    "self_agreement": "metrics.self_agreement",
    "set_rubric": "store.rubrics",
    "sweep": "experiments.sweep",
    "use_workspace": "experiments.workspace",
    "write_report": "reporting.report",
}

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
