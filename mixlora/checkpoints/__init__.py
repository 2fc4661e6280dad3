"""Checkpoints on disk: bases, adapters, and those of the published code.

`loading` loads bases, processors and adapters; `assembly` makes a base from its parts; `formats` recognises and reads
what others published, `pickled` reads their pickles without executing them, `conversion` and `projector` convert them;
`inspection` is `mixlora info`; `lengths` says how long texts may be. `patterns` tries an adapter's before PEFT does.

Not here: the directory of a training (`training.folder`).
"""
