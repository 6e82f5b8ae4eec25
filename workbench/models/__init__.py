"""Asking models.

A request goes in (a key, a call, a reading of the answer) and an outcome comes back: the answer,
its usage, or the fault. Cache, budget, retries, rate limits, early stop and recordings live here,
once for all: judges, reflection, preflight, other optimizers. `offline` is the embedded model.
"""
