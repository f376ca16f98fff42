"""The checks of `tallystick verify`, one module for each part of the platform."""
