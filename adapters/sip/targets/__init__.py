"""Where requests go: DNS, the order of targets, and what happens when one fails (RFC 3263)."""
