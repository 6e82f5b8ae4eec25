"""Verdicts joined with human labels.

Traces with assessments come in; pairs of one verdict and one consensus label, and the list of
traces that make no pair with the reason, come out. Splits and adjudication belong here.
"""
