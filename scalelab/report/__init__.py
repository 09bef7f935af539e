"""Figures and reports: data in, picture out."""
