"""Calls, legs, bridges, queue sessions, presence, HTTP API and the processes that carry them."""
