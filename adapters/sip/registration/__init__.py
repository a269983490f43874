"""Registrations of phones with us, and of us with carriers (RFC 3261 10, RFC 5626)."""
