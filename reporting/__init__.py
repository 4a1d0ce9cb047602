"""Tell: alerts and scheduled reports."""
