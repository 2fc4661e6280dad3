"""What the promises of speed, memory and accuracy come to on this machine: `python -m tests.benchmarks`.

Times are ratios within one run, since machines differ and are busy; nothing is asserted.
"""
