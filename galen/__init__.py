"""The root: command line, configuration, supervision, drills."""
