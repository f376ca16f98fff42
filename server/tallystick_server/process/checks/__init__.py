"""What `tallystick verify` checks, a file for each part of the platform."""
