"""Pictures and reports: statistics and alignments in, matplotlib Axes and HTML out."""
