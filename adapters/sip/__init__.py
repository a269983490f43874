"""SIP: a sans-IO stack. Bytes, events and the time go in; effects come out."""
