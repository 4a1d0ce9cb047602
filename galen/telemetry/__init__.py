"""What Galen tells Prometheus of itself, and the rules and dashboards that go with it."""
