"""Detection over a fleet: divided by entity, run in this process or by workers of Dask distributed."""
