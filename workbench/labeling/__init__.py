"""Labeling without a view.

Questions, assignment, order, queue, session and writer, and pairs to be explored: what a panel
shows and does is decided here and tested without a browser. Labels go out to the store.
"""
