"""The encoders that need no network.

MiniLM (text) and EfficientNet-Lite0 (the image tower) are real and come in Python packages. The projections that join them into a
CLIP, and the whole wav2vec 2.0, are untrained: spaces of kind `untrained`.
"""
