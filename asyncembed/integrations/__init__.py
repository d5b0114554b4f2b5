"""One thin module per framework, store or tool; each behind an extra, imported by nobody else."""
