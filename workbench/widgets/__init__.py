"""What notebooks show and people touch.

Views (anywidget, JavaScript, CSS) of a labeling session, an adjudication, a running alignment and
the items behind a confusion matrix. They hold view state only.
"""
