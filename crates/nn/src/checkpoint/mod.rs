//! Checkpoint files: safetensors, PyTorch archives, NumPy archives, the hub cache.
