"""What both commands, `mixlora` and `interference`, stand on. No torch at import, nothing of the method.

`errors`, `enums` and `labels`; `files`, `directories`, `locks` and `writing` on disk; `settings` and `sections` of
configurations; `command`, `terminal` and `progress` of the command line; `processes` that share work.
"""
