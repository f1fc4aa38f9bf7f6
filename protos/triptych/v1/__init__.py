"""The API, version 1: `.proto` files, with the code and stubs that `make protos` generates beside them."""
