"""Files to examples.

`files` reads JSON, parquet and dataset directories; `records` turns one record into an example; `tasks` reads all
examples of a configuration's task; `mme` reads MME's folders; `problems` collects errors while reading continues.

Not here: prompts and tokens (`data.templates`, `data.collation`).
"""
