"""What each list, monitor query and claim costs in a large database."""
