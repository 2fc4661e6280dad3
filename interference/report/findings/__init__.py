"""What a page concludes from summaries of runs: changes, depth, drivers, groups of tasks, and excerpts of examples.

Not here: the headline of a page (`report.conclusions`).
"""
