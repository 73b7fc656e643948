"""The statements: loads them, puts them into a schema and sends them, with one typed method each."""
