"""Parts of `examples/reproduce_paper.py`: the SpecKV paper held to its own records."""
