"""Calls and subscriptions: what two user agents know of each other (RFC 3261 12 to 15, RFC 6665)."""
