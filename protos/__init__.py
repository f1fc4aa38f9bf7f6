"""The API, and the Python code generated from it; the include root is the repository."""
