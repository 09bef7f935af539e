"""Getting a plan run: what to submit next, on this machine or on a SLURM cluster."""
