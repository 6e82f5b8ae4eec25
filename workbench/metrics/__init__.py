"""Statistics: pairs in, figures with their intervals out.

How well a judge agrees with people, overall and by slice, how well people agree among themselves,
whether the judge is as good as one more of them, whether one judge is better than another, and
what a judge's verdicts say of all items. Nothing here draws.
"""
