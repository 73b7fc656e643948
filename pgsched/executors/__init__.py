"""The ways to call a function: awaited, in a thread, in a process, as a command. Also: which project it comes from."""
