"""From engine events to interactions (and, later, contacts and cases)."""
