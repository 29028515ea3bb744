"""What one accelerator does: speed, time to the first step and memory, ours and PyTorch's."""
