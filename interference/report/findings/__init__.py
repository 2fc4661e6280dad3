"""What a page concludes from summaries of runs: changes, dependence, depth, drivers, excerpts, predictions, trials.

Not here: the headline of a page (`report.conclusions`).
"""
