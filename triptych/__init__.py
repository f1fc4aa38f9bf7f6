"""The `triptych` command, the client library and the demo.

`triptych.client` needs the base install only: grpcio, protobuf and numpy.
"""

__version__ = "0.1.0"
