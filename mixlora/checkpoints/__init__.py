"""Checkpoints on disk: bases, adapters, and those of the published code.

`loading` puts a base and an adapter together, `assembly` a model from parts, `formats` and `conversion` read the
published layout, `projector` its projector, `pickled` reads pickled tensors without running them, `inspection` is
`mixlora info`.

Not here: what a training writes (`training.folder`).
"""
