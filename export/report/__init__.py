"""The parity report, for people and for CI."""
