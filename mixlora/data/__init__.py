"""Examples of tasks: what an example is, how files are read, and how batches are made.

`examples` defines one; `reading/` reads files; `sources` and `sampling` choose, `draws` by groups; `templates` and
`collation` make batches; `images` opens pictures; `groups` says which examples share something; `checking` checks all
data before a model is loaded; `preview` shows examples as they reach it, and `described` says what was used of the
data; `export` writes files; `mini/` is the shipped suite.

Not here: a training's corpus and the order of its examples (`training`).
"""
