"""The report: runs to a page that a person reads. First every number and sentence as data, then the page.

`scopes` chooses what is looked at, `summary` measures one run in one scope, `findings/`, `conclusions` and
`suggestions` say what follows, `data` puts all together, `tables` writes CSVs, `html/` is what a browser reads,
`directory` writes it all.

Not here: statistics (`statistics`), figures for papers (`figures`).
"""
