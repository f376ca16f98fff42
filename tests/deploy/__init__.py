"""The files in deploy/: rules, dashboards, images and the example installation."""
