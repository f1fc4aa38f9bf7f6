"""Feast definitions of Triptych: what `feast apply` registers."""
