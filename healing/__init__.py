"""Act: plan, guard, ledger, execute, verify."""
