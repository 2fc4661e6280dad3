"""Files to examples: `files` reads JSON and its kin, `records` knows the shapes of a record, `tasks` joins them to a
task's examples, `mme` reads MME's folders, `problems` names what is wrong with a record.

Not here: prompts and tokens (`data.templates`, `data.collation`).
"""
