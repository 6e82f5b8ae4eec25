"""Notebooks with parameters.

A notebook and parameters come in; an executed notebook in its output folder comes out, run by
papermill in the workspace's MLflow store.
"""
