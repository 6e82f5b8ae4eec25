"""What notebooks show and people touch.

Views (anywidget, JavaScript, CSS) of a labeling session, an adjudication and a running
alignment. They hold view state only.
"""
