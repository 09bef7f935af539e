"""The Streamlit page: look at a sweep, then decide."""

from pathlib import Path

PDF_SCRIPT = Path(__file__).with_name("pdf.js")
"""The script that writes a figure as PDF: `server` serves it, and `share` loads it when asked."""
