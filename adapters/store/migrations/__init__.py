"""The schema's history, for alembic. Each version is raw SQL."""
