"""See: Streamlit pages over the stores."""
