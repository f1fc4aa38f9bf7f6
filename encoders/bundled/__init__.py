"""The encoders that need no network.

MiniLM (text) and EfficientNet-Lite0 (the image tower) come in Python packages; the projections that join them into a CLIP, and the small
wav2vec 2.0, were trained by this project and lie in `checkpoints`, each with a card.
"""
