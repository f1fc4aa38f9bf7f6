"""Container of the API definitions."""
