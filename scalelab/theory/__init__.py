"""Shapes, counts, schedules, hardware and law forms: arithmetic without state."""
