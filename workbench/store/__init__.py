"""Files and the MLflow store.

Tables (CSV, JSONL, Parquet, DataFrames) come in and become traces; traces, assessments, labels,
label schemas and rubrics are read and written. Nothing here knows a judge or a model.
"""
