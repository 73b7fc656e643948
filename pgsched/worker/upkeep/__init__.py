"""Upkeep: dead workers, declared schedules, old rows, the schema."""
