"""The audit: the Merkle tree over the log, proofs, and what an auditor can check without trusting anybody."""
