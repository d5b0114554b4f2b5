"""One thin module per framework, store or tool; behind an extra where it needs one, imported by nobody else."""
