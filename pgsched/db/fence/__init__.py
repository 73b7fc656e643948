"""run.transaction(): the application's writes and the run's success in one commit."""
