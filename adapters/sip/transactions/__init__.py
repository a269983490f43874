"""One request and its responses (RFC 3261 17), and the timers of all of them."""
