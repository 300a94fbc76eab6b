"""The parity gate: prove that an exported file computes what its checkpoint computes."""
