"""What a page concludes from summaries of runs: changes, dependence, depth, drivers, groups of tasks, excerpts.

Not here: the headline of a page (`report.conclusions`).
"""
