"""Parts of the benchmarks of watching a fleet: its targets, and the processes that are measured."""
