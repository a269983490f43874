"""What is written in SIP messages: parsing and building, nothing else."""
