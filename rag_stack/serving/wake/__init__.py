"""From zero replicas to a first token: who is held where, and what is ready beforehand."""
