"""Which replica has a question's documents in its key-value cache, as far as a router can know. Ray: `ingress`."""
