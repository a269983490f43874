"""Durable storage: the embedded PostgreSQL server, its schema, the event log and the records."""
