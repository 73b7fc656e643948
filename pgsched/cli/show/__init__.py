"""Output of the command line: tables, fields and sentences."""
