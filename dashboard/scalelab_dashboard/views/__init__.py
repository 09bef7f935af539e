"""One file a view; each has ``show(choice)``. A folder named pages would be Streamlit's own."""
