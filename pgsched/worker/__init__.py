"""The daemon. Read worker.py first."""
