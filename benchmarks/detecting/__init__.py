"""What the speed benchmark of detection is made of."""
