"""The `Telephony` protocol on our own SIP stack and media workers."""
