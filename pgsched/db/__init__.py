"""All code that talks to PostgreSQL."""
