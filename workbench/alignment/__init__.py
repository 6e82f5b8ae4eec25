"""Alignment end to end.

Pairs come in; preflight, an optimizer, a held-out test behind a gate, an MLflow run and a
registered judge come out. Other people's optimizers, background runs and benchmarks of
optimizers belong here.
"""
