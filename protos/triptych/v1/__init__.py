"""Version 1 of the API: sources and stubs. Edit the `.proto` files only, then run `make protos`."""
