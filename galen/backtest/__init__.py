"""What `galen backtest` replays, and how the result is told."""
