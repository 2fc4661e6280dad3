"""Adapted models in lmms-eval: `model` is what it runs, `plugin` how it finds it (an entry point of the package)."""
