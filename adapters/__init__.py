"""What joins the engine to the outside: SIP, media workers, PostgreSQL."""
