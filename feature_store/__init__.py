"""Where features live: offline tables, history, the columnar Milvus core, and thin Feast adapters over them.

Nothing here imports torch, and only the `feast_*` modules import feast.
"""
