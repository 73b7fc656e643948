"""How a function is called: awaited, in a thread, in a process, as a command."""
