"""The configuration document: schema, loader, validation."""
