"""Who may do what, and how much: digest, bans, limits, admission under load."""
