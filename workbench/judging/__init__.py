"""Judges and their verdicts.

A judge and traces come in; verdicts, logged to MLflow with the judge's fingerprint, come out.
"""
