"""Sockets: UDP, TCP, TLS and WebSockets."""
