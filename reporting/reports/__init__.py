"""Reports: one model, built from journal, ledger and store, rendered in three forms."""
