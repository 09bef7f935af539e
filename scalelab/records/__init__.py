"""Files of runs and sweeps, and the tables of finished runs that fits read."""
