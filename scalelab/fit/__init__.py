"""Fits of the laws to finished runs, with intervals that say how sure they are."""
