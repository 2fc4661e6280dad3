"""Files to examples.

`files` finds a task's records: in files (`formats`, `tables`, `columns`, `unpacking`), `directories`, on a `hub`.
`records` turns one record into an example, by its `shapes`, `messages`, `pictures` and `values`; `tasks` reads all
examples of a configuration's task; `without` leaves some out by their ids; `mme` reads MME's folders; `problems`
collects errors while reading continues.

Not here: prompts and tokens (`data.templates`, `data.collation`).
"""
