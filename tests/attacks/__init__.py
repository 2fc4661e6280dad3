"""Attacks on the two commands that anyone can repeat: python -m tests.attacks [NAME ...] [--seed N] [--times K].

`flips`, `full`, `together`, `signals`, `changes` are one attack each; `counts` is what came of one, `places` makes what
the commands read, `commands` runs them in processes of their own. Not here: fuzzing of readers (`tests/fuzz`).
"""
