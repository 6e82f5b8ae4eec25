"""Statistics of agreement.

Pairs come in; plain tables and numbers with intervals come out. Pure functions, no plotting.
"""
