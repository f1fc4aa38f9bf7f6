"""One small file per verb of the `triptych` command; each exposes `app`. Heavy imports stay inside the functions."""
