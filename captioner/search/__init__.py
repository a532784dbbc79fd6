"""Search by meaning: an index of embeddings on each machine."""
