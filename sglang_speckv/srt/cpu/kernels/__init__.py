"""Reference kernels in plain PyTorch, one module per subject, for SGLang's CPU path.

Signatures and tensor layouts are those of SGLang's call sites; nothing here imports SGLang.
"""
