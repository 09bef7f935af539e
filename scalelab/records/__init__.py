"""What a run leaves behind: its files, and the rows that a fit reads."""
