"""Batches for the encoders: lanes and grouping (`queue`), threads (`inbox`, `preparing`, `forwarder`), one answer per key (`jobs`, `cache`).

The queue is pure and knows no time but what it is told; threads know no gRPC; `pipeline` puts the parts together.
"""
