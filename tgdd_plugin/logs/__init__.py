"""Logs of trainings and distillations: a CSV file, Composer's loggers, and what keeps their errors to themselves."""
