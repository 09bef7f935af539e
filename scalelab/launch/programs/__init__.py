"""Runs of a training program of the user: plan, start, follow, stop, resume and record."""
