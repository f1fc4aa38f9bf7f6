"""The fusion ranker: a model over multimodal item features, its training, evaluation, checkpoints and serving-side scorer.

It reads training sets and item features as arrays; it knows neither Feast nor Milvus nor gRPC. Import what you need from the
modules: `config`, `data`, `train`, `evaluate`, `checkpoint`, `scorer`, `export`. This file costs no torch.
"""
