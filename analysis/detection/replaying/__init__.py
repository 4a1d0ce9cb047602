"""Live detection over stored history: ticks, alarms, what was around them, and how good they were."""
