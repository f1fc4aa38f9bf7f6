"""The gRPC services: embedding, retrieval, ranking, feedback and administration.

Reads what the feature store holds, never Feast; the API itself is defined in `protos/`.
"""
