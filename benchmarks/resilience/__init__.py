"""What a service does while it is hurt: traffic, faults and what an outsider sees of them."""
