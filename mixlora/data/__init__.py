"""Examples of tasks: what one is, how files of them are read, and how a model is fed with them.

`reading/` reads files, `sources` and `sampling` choose, `templates` and `collation` make batches, `images` opens
pictures, `checking` looks at data before any model is loaded, `export` writes; `mini/` is the shipped suite.

Not here: the mixture and order of a training (`training`).
"""
