"""Statistics: pairs in, figures with their intervals out.

How well a judge agrees with people, how well people agree among themselves, whether one judge
is better than another, and what a judge's verdicts say of all items. Nothing here draws.
"""
