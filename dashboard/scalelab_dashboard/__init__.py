"""The Streamlit page: look at a sweep, then decide."""
