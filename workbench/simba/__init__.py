"""Stochastic introspective mini-batch ascent.

A judge and labelled items come in; a judge with better instructions comes out. The search is a
pure function of its items, its seed and two callables; the optimizer joins it with judges,
models and MLflow.
"""
