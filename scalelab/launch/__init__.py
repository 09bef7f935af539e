"""Launching: chooses the runs of a sweep and trains them on this machine or a SLURM cluster."""
