"""Runs to a page: `data` computes every number and sentence of a report, `page` renders them, `tables` writes CSVs."""
