"""The API of Triptych, by version."""
