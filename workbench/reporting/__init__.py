"""Pictures and reports.

Results come in; matplotlib Axes and one self-contained HTML file come out. No statistic is
computed here.
"""
