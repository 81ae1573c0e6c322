"""The index of drivers: read from several registries, and written when a driver is published."""
