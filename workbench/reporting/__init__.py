"""Pictures and reports: statistics and alignments in, matplotlib Axes and HTML out.

Every picture takes ``ax=None``, returns the Axes and never shows. Figures come from
`workbench.metrics`; nothing is computed here. Colours are safe for colour-blind readers.
"""
