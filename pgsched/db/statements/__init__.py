"""The statements: they are loaded, put in a schema and sent, one typed method each."""
