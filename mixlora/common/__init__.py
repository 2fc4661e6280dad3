"""What both commands, `mixlora` and `interference`, build on. Only `processes` imports torch.

`errors`, `enums` and `labels`; `limits` on work that may never end; reading `files`, `writing` them, `sealed` records,
`spreadsheets`, `directories` and `locks`; `settings` and `sections` of configurations; `command`, `terminal` and
`progress` of the command line; `processes` that share work; `aliases` of public modules.

Not here: anything of the method, of data or of models.
"""
