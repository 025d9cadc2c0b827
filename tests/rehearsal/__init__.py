"""What a CUDA server does on the host, done on a CPU. Nothing of it is in the package."""
