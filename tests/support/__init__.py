"""Helpers that several test files share: things made (models, runs, data), things read, and processes; no tests."""
