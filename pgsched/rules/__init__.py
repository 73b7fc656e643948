"""Pure decisions: which runs, skips and changes follow from a state and a time. No module here sends a statement."""
